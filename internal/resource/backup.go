package resource

import (
	"encoding/hex"
	"net/mail"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "drover/api/drover/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Defaults of repositories and policies.
const (
	DefaultCollect    = "daily 05:00"
	DefaultScrub      = "sat 06:00"
	DefaultScrubShare = 0.25
	DefaultParallel   = 4

	DefaultRetries     = 3
	DefaultRetryDelay  = 5 * time.Minute
	DefaultPolicyRuns  = 8
	DefaultPerHost     = 2
	DefaultAuditShare  = 0.001
	DefaultRetainLast  = 7
	DefaultRetainWeeks = 4
	// ShortestPassphrase is in characters.
	ShortestPassphrase = 12
)

// bucket is what S3 calls a bucket may have.
var bucket = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// DefaultRepository fills in what a repository leaves open.
func DefaultRepository(r *v1.Repository) {
	s := r.Spec
	if s.CollectSchedule == "" {
		s.CollectSchedule = DefaultCollect
	}
	if s.ScrubSchedule == "" {
		s.ScrubSchedule = DefaultScrub
	}
	if s.ScrubShare == 0 {
		s.ScrubShare = DefaultScrubShare
	}
	if s.Parallel == 0 {
		s.Parallel = DefaultParallel
	}
}

// CheckRepository says what is wrong with a repository, but for its calendar expressions.
func CheckRepository(r *v1.Repository) error {
	f := begin(KindRepository, r.GetMeta(), false)
	s := r.GetSpec()
	checkEnums(f, s)
	checkText(f, "spec.description", s.GetDescription(), 1024)
	if s.GetHost() != "" && !ValidName(s.GetHost()) {
		f.Add("spec.host", "HOST_MISSING", "%q is not the name of a host; leave it out to have the manager serve it", s.GetHost())
	}
	checkLocation(f, s)
	if b := s.GetFormat().GetBlockSize(); b != 0 && (b < 4096 || b > 4<<20 || b&(b-1) != 0) {
		f.Add("spec.format.block_size", "OUT_OF_RANGE", "%d; must be a power of two from 4096 to 4194304, or 0 for 65536", b)
	}
	notNegative(f, "spec.quota_bytes", s.GetQuotaBytes())
	notNegative(f, "spec.bandwidth_limit", s.GetBandwidthLimit())
	for _, w := range s.GetBandwidthWindows() {
		notNegative(f, "spec.bandwidth_windows", w.GetBandwidthLimit())
	}
	if x := s.GetScrubShare(); !(x >= 0 && x <= 1) {
		f.Add("spec.scrub_share", "OUT_OF_RANGE", "%v; must be 0 to 1", x)
	}
	if p := s.GetParallel(); p < 0 || p > 1000 {
		f.Add("spec.parallel", "OUT_OF_RANGE", "%d; must be 1 to 1000, or 0 for %d", p, DefaultParallel)
	}
	for i, m := range s.GetMirrors() {
		if !ValidName(m) || m == r.GetMeta().GetName() || slices.Contains(s.Mirrors[:i], m) {
			f.Add("spec.mirrors", "REFERENCE_UNKNOWN", "%q is not the name of another repository, or stands there twice", m)
		}
	}
	return f.Err()
}

func notNegative(f *Faults, field string, n int64) {
	if n < 0 {
		f.Add(field, "OUT_OF_RANGE", "%d; must not be negative", n)
	}
}

func checkLocation(f *Faults, s *v1.RepositorySpec) {
	l := s.GetLocation()
	rest, s3 := strings.CutPrefix(l, "s3://")
	if !s3 {
		if s.GetS3() != nil {
			f.Add("spec.s3", "LOCATION_INVALID", "is for locations such as s3://BUCKET/PREFIX, not %q", l)
		}
		switch {
		case !path.IsAbs(l) || path.Clean(l) != l || len(l) > 1024 || strings.ContainsAny(l, "\x00\n"):
			f.Add("spec.location", "LOCATION_INVALID", "%q must be an absolute, clean path, or s3://BUCKET/PREFIX", l)
		case l == "/" || slices.Contains([]string{"/etc", "/usr", "/proc", "/sys", "/dev", "/boot", "/bin", "/sbin", "/lib"}, "/"+strings.SplitN(l, "/", 3)[1]):
			f.Add("spec.location", "LOCATION_INVALID", "%q belongs to the system; use a directory of its own such as /srv/backup", l)
		}
		return
	}
	name, prefix, _ := strings.Cut(rest, "/")
	if !bucket.MatchString(name) || strings.ContainsAny(prefix, "\x00\n\\?#") || prefix != "" && path.Clean(prefix) != strings.TrimSuffix(prefix, "/") || strings.HasPrefix(prefix, "..") || len(prefix) > 512 {
		f.Add("spec.location", "LOCATION_INVALID", "%q must be s3://BUCKET/PREFIX with a bucket of 3 to 63 characters of a-z, 0-9, '.' and '-'", l)
	}
	x := s.GetS3()
	if e := x.GetEndpoint(); e != "" && (strings.ContainsAny(e, "/ @?#\x00\n") || len(e) > 255) {
		f.Add("spec.s3.endpoint", "ENDPOINT_INVALID", "%q must be HOST:PORT", e)
	}
	checkText(f, "spec.s3.access_key", x.GetAccessKey(), 255)
	checkText(f, "spec.s3.ca", x.GetCa(), 64<<10)
	checkDuration(f, "spec.s3.object_lock", x.GetObjectLock(), 0, 100*365*24*time.Hour)
}

func checkDuration(f *Faults, field string, d *durationpb.Duration, least, most time.Duration) {
	if d == nil {
		return
	}
	if x := d.AsDuration(); !d.IsValid() || x < least || x > most {
		f.Add(field, "OUT_OF_RANGE", "%v; must be %v to %v", x, least, most)
	}
}

// CheckPassphrase says what is wrong with a new passphrase.
func CheckPassphrase(name, passphrase string) error {
	f := FaultsOf(KindRepository, name)
	if n := len([]rune(passphrase)); n < ShortestPassphrase || n > 1024 {
		f.Add("passphrase", "PASSPHRASE_INVALID", "has %d characters; must have %d to 1024: whoever has the storage can try as many as they like", n, ShortestPassphrase)
	}
	return f.Err()
}

// DefaultPolicy fills in what a policy leaves open.
func DefaultPolicy(p *v1.BackupPolicy) {
	s := p.Spec
	if s.Retries == 0 {
		s.Retries = DefaultRetries
	}
	if s.RetryDelay == nil {
		s.RetryDelay = durationpb.New(DefaultRetryDelay)
	}
	if s.Parallel == 0 {
		s.Parallel = DefaultPolicyRuns
	}
	if s.ParallelPerHost == 0 {
		s.ParallelPerHost = DefaultPerHost
	}
	if s.AuditShare == 0 {
		s.AuditShare = DefaultAuditShare
	}
	if emptyRetention(s.Retention) {
		s.Retention = &v1.Retention{Last: DefaultRetainLast, Weekly: DefaultRetainWeeks}
	}
}

func emptyRetention(r *v1.Retention) bool {
	return r.GetLast() == 0 && r.GetHourly() == 0 && r.GetDaily() == 0 && r.GetWeekly() == 0 && r.GetMonthly() == 0 && r.GetYearly() == 0 && r.GetWithin().AsDuration() == 0
}

// CopyRetention is how long a copy keeps points: as it says itself, or as the policy does.
func CopyRetention(p *v1.BackupPolicySpec, c *v1.PolicyCopy) *v1.Retention {
	if emptyRetention(c.GetRetention()) {
		return p.GetRetention()
	}
	return c.Retention
}

// CheckPolicy says what is wrong with a policy, but for its calendar expressions and its filter.
func CheckPolicy(p *v1.BackupPolicy) error {
	f := begin(KindPolicy, p.GetMeta(), false)
	s := p.GetSpec()
	checkEnums(f, s)
	checkText(f, "spec.description", s.GetDescription(), 1024)
	checkSelector(f, s.GetSelect())
	if tz := s.GetTimeZone(); tz != "" {
		if _, err := time.LoadLocation(tz); err != nil || strings.HasPrefix(tz, "Local") {
			f.Add("spec.time_zone", "TIME_ZONE_UNKNOWN", "%q is not in the IANA time zone database; use a name such as Europe/Berlin", tz)
		}
	}
	checkDuration(f, "spec.rpo", s.GetRpo(), time.Minute, 366*24*time.Hour)
	if len(s.GetSchedules())+len(s.GetWindows()) > 64 {
		f.Add("spec.schedules", "TOO_MANY", "at most 64 schedules and windows")
	}
	if !ValidName(s.GetRepository()) {
		f.Add("spec.repository", "REPOSITORY_MISSING", "a policy backs up to a repository; %q is not the name of one", s.GetRepository())
	}
	used := []string{s.GetRepository()}
	for _, c := range s.GetCopies() {
		if !ValidName(c.GetRepository()) || slices.Contains(used, c.GetRepository()) {
			f.Add("spec.copies", "COPY_INVALID", "%q is not the name of a repository, or is used twice", c.GetRepository())
		}
		used = append(used, c.GetRepository())
		checkRetention(f, "spec.copies.retention", c.GetRetention())
		notNegative(f, "spec.copies.bandwidth_limit", c.GetBandwidthLimit())
	}
	checkRetention(f, "spec.retention", s.GetRetention())
	if s.GetTest() != nil {
		if x := s.Test.Share; !(x >= 0 && x <= 1) {
			f.Add("spec.test.share", "OUT_OF_RANGE", "%v; must be 0 to 1", x)
		}
		checkBoot(f, "spec.test.check", s.Test.Check)
	}
	if s.GetRetries() < 0 || s.GetRetries() > 100 {
		f.Add("spec.retries", "OUT_OF_RANGE", "%d; must be 0 to 100", s.Retries)
	}
	checkDuration(f, "spec.retry_delay", s.GetRetryDelay(), time.Second, 24*time.Hour)
	checkDuration(f, "spec.catch_up", s.GetCatchUp(), 0, 366*24*time.Hour)
	if s.GetParallel() < 0 || s.GetParallel() > 1000 || s.GetParallelPerHost() < 0 || s.GetParallelPerHost() > 100 {
		f.Add("spec.parallel", "OUT_OF_RANGE", "must be 0 to 1000, per host 0 to 100")
	}
	if p := s.GetPriority(); p < -1000 || p > 1000 {
		f.Add("spec.priority", "OUT_OF_RANGE", "%d; must be -1000 to 1000", p)
	}
	notNegative(f, "spec.bandwidth_limit", s.GetBandwidthLimit())
	if a := s.GetAuditShare(); a != -1 && !(a >= 0 && a <= 1) {
		f.Add("spec.audit_share", "OUT_OF_RANGE", "%v; must be 0 to 1, or -1 for none", a)
	}
	checkNotification(f, s.GetNotify())
	return f.Err()
}

func checkSelector(f *Faults, s *v1.PolicySelector) {
	checkText(f, "spec.select.filter", s.GetFilter(), 4096)
	for field, list := range map[string][]string{"vms": s.GetVms(), "sites": s.GetSites(), "except": s.GetExcept()} {
		for _, n := range list {
			if !ValidName(n) {
				f.Add("spec.select."+field, "NAME_INVALID", "%q is not a name", n)
			}
		}
	}
}

func checkRetention(f *Faults, field string, r *v1.Retention) {
	for _, n := range []int32{r.GetLast(), r.GetHourly(), r.GetDaily(), r.GetWeekly(), r.GetMonthly(), r.GetYearly()} {
		if n < 0 || n > 100_000 {
			f.Add(field, "OUT_OF_RANGE", "%d; must be 0 to 100000", n)
		}
	}
	checkDuration(f, field+".within", r.GetWithin(), 0, 200*366*24*time.Hour)
}

func checkNotification(f *Faults, n *v1.Notification) {
	if len(n.GetMail())+len(n.GetWebhooks()) > 32 {
		f.Add("spec.notify", "TOO_MANY", "at most 32 addresses")
	}
	for _, a := range n.GetMail() {
		if x, err := mail.ParseAddress(a); err != nil || x.Address != a || strings.ContainsAny(a, "\r\n") {
			f.Add("spec.notify.mail", "ADDRESS_INVALID", "%q is not a mail address such as ops@example.org", a)
		}
	}
	for _, w := range n.GetWebhooks() {
		u, err := url.Parse(w)
		switch {
		case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
			f.Add("spec.notify.webhooks", "URL_INVALID", "%q is not an http or https address", w)
		case u.User != nil:
			f.Add("spec.notify.webhooks", "URL_INVALID", "has a user name or password in it, and everybody who may list policies would read it")
		}
	}
	checkText(f, "spec.notify.webhook_secret", n.GetWebhookSecret(), 1024)
}

// CheckBoot says what is wrong with what a boot test is to check.
func CheckBoot(point string, c *v1.BootCheck) error {
	f := FaultsOf(KindPoint, point)
	checkBoot(f, "check", c)
	return f.Err()
}

func checkBoot(f *Faults, field string, c *v1.BootCheck) {
	if p := c.GetTcpPort(); p < 0 || p > 65535 {
		f.Add(field+".tcp_port", "OUT_OF_RANGE", "%d; must be 1 to 65535", p)
	}
	if len(c.GetExec()) > 64 {
		f.Add(field+".exec", "TOO_MANY", "at most 64 arguments")
	}
	checkText(f, field+".console", c.GetConsole(), 1024)
	checkDuration(f, field+".timeout", c.GetTimeout(), time.Second, 24*time.Hour)
}

// PointName splits "REPOSITORY/ID", the name of a restore point.
func PointName(name string) (repository, id string, ok bool) {
	repository, id, ok = strings.Cut(name, "/")
	b, err := hex.DecodeString(id)
	return repository, id, ok && ValidName(repository) && err == nil && len(b) == 16 && strings.ToLower(id) == id
}
