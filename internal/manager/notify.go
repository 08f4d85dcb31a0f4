package manager

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"strings"
	"time"

	v1 "drover/api/drover/v1"
	"drover/internal/auth"
	"drover/internal/resource"
	"drover/internal/task"
)

// notice is what a webhook gets, and what a mail says. Fields are only ever added.
type notice struct {
	// Event is "run.succeeded", "run.failed".
	Event   string `json:"event"`
	ID      string `json:"id"` // the same when it is sent again
	Policy  string `json:"policy"`
	Cluster string `json:"cluster"`
	Start   string `json:"start"`
	End     string `json:"end"`
	VMs     int32  `json:"vms"`
	OK      int32  `json:"succeeded"`
	Failed  int32  `json:"failed"`
	Read    int64  `json:"readBytes"`
	Added   int64  `json:"addedBytes"`
	// Faults are the VMs that failed, with why.
	Faults []fault `json:"faults,omitempty"`
}

type fault struct {
	VM    string `json:"vm"`
	Error string `json:"error"`
}

// mostFaults bounds what one notice names.
const mostFaults = 100

// tellRun begins the task that tells people of a run that has ended, if they want to hear of it.
func (m *Manager) tellRun(ctx context.Context, p *v1.BackupPolicy, run *v1.PolicyRun) error {
	n := p.Spec.Notify
	if len(n.GetMail())+len(n.GetWebhooks()) == 0 || run.Failed == 0 && !n.Success {
		return nil
	}
	doc := notice{
		Event: "run.succeeded", ID: resource.NewUID(), Policy: p.Meta.Name, Cluster: m.cluster.Meta.Uid, Start: run.StartTime.AsTime().Format(time.RFC3339), End: run.EndTime.AsTime().Format(time.RFC3339),
		VMs: run.Vms, OK: run.Succeeded, Failed: run.Failed, Read: run.ReadBytes, Added: run.AddedBytes,
	}
	if run.Failed > 0 {
		doc.Event = "run.failed"
		all, _ := m.records.cache.List()
		for _, rec := range all {
			if rec.Policy == p.Meta.Name && rec.Failures > 0 && len(doc.Faults) < mostFaults {
				doc.Faults = append(doc.Faults, fault{rec.Vm, rec.Error})
			}
		}
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	_, err = m.tasks.Submit(ctx, &v1.TaskSpec{Kind: taskNotify, TargetKind: resource.KindPolicy, Target: p.Meta.Name, Principal: auth.SystemPrincipal("policy " + p.Meta.Name).String(), Arguments: b})
	return err
}

// Tries of a notification, and the wait before the second, doubled each time: an hour in all.
const (
	notifyTries = 9
	notifyFirst = 10 * time.Second
	notifyTime  = 30 * time.Second // of one try
)

// doNotify sends what it can at each try, and tries again what failed. What was sent is noted, so that it is not sent again.
func (m *Manager) doNotify(ctx context.Context, r *task.Run) error {
	p, err := m.Policies.lookup(r.Task.Spec.Target)
	if err != nil {
		return err
	}
	var doc notice
	if err := json.Unmarshal(r.Task.Spec.Arguments, &doc); err != nil {
		return err
	}
	for try, wait := 1, notifyFirst; ; try, wait = try+1, 2*wait {
		var failed []error
		for _, to := range append(append([]string{}, p.Spec.GetNotify().GetMail()...), p.Spec.GetNotify().GetWebhooks()...) {
			if r.Note(to) != "" {
				continue
			}
			sctx, stop := context.WithTimeout(ctx, notifyTime)
			err := m.send(sctx, p, to, doc, r.Task.Spec.Arguments)
			stop()
			if err == nil {
				r.Log("sent to %s", to)
				err = r.SetNote(ctx, to, "sent")
			}
			if err != nil {
				r.Log("%s: %v", to, err)
				failed = append(failed, fmt.Errorf("%s: %w", to, err))
			}
		}
		if len(failed) == 0 {
			return nil
		}
		if try >= notifyTries {
			m.event(v1.Severity_SEVERITY_ERROR, resource.KindPolicy, p.Meta.Name, "NOTIFICATION_FAILED", errors.Join(failed...).Error())
			return errors.Join(failed...)
		}
		select {
		case <-m.cfg.Clock.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m *Manager) send(ctx context.Context, p *v1.BackupPolicy, to string, doc notice, body []byte) error {
	if strings.Contains(to, "://") {
		return m.sendWebhook(ctx, p, to, body)
	}
	return m.sendMail(ctx, to, doc)
}

var errNotSent = errors.New("not sent")

// signatureHeader has the HMAC-SHA-256 of the body under the policy's secret.
const signatureHeader = "Drover-Signature"

func (m *Manager) sendWebhook(ctx context.Context, p *v1.BackupPolicy, url string, body []byte) error {
	secret, err := m.secret(p)
	if err != nil {
		return err
	}
	if secret == "" && p.GetStatus().GetWebhookSigned() {
		return fmt.Errorf("%w: the secret that signs it is not on this machine, as after a restored state; give it again as spec.notify.webhookSecret, by drover apply", errNotSent)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "drover/"+m.cfg.Version)
	if secret != "" {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(body)
		req.Header.Set(signatureHeader, "sha256="+hex.EncodeToString(mac.Sum(nil)))
	}
	c := m.cfg.Outbound
	if c == nil {
		c = outbound()
		defer c.CloseIdleConnections()
	}
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // the answer's words are nobody's
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("%w: the server said %s", errNotSent, res.Status)
	}
	return nil
}

// compose makes a mail. Nothing that a VM or a server said gets into its head.
func (m *Manager) compose(to string, doc notice, now time.Time) []byte {
	verb := "succeeded"
	if doc.Failed > 0 {
		verb = fmt.Sprintf("failed for %d of %d VMs", doc.Failed, doc.VMs)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\nSubject: %s\r\nDate: %s\r\nMessage-ID: <%s@drover>\r\n", m.cfg.SMTP.From, to,
		mime.QEncoding.Encode("utf-8", "Drover: backup policy "+doc.Policy+" "+verb), now.Format(time.RFC1123Z), doc.ID)
	b.WriteString("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\nAuto-Submitted: auto-generated\r\n\r\n")
	text := func(format string, args ...any) {
		s := strings.NewReplacer("\r", " ", "\n", " ").Replace(fmt.Sprintf(format, args...))
		if len(s) > 900 { // RFC 5321 allows 998 bytes in a line
			s = strings.ToValidUTF8(s[:900], "") + "…"
		}
		b.WriteString(s + "\r\n")
	}
	text("Policy:    %s", doc.Policy)
	text("Run:       %s to %s", doc.Start, doc.End)
	text("VMs:       %d, %d succeeded, %d failed", doc.VMs, doc.OK, doc.Failed)
	text("Read:      %d MiB", doc.Read>>20)
	text("Added:     %d MiB", doc.Added>>20)
	if len(doc.Faults) > 0 {
		text("")
		for _, f := range doc.Faults {
			text("%s: %s", f.VM, f.Error)
		}
	}
	return b.Bytes()
}

// sendMail hands one mail to the server.
func (m *Manager) sendMail(ctx context.Context, to string, doc notice) (err error) {
	s := m.cfg.SMTP
	if s.Server == "" {
		return errors.New("the manager has no mail server; start it with --smtp-server and --smtp-from")
	}
	host, port, _ := net.SplitHostPort(s.Server)
	conf := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("no certificate in %s", s.CA)
		}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Server)
	if err != nil {
		return err
	}
	defer conn.Close()
	if t, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(t); err != nil {
			return err
		}
	}
	if port == "465" {
		conn = tls.Client(conn, conf)
	}
	c, err := smtp.NewClient(conn, host)
	if err != nil {
		return err
	}
	defer c.Close()
	if port != "465" {
		if ok, _ := c.Extension("STARTTLS"); ok {
			if err := c.StartTLS(conf); err != nil {
				return err
			}
		} else if !s.Plain {
			return errors.New("the mail server offers no TLS; allow that with --smtp-plain")
		}
	}
	if s.User != "" {
		password, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return err
		}
		if err := c.Auth(smtp.PlainAuth("", s.User, strings.TrimRight(string(password), "\r\n"), host)); err != nil {
			return err
		}
	}
	if err := c.Mail(s.From); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write(m.compose(to, doc, m.cfg.Clock.Now())); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}
