package blob_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"drover/internal/blob"
	"drover/internal/blob/blobtest"
)

var quick = blob.RetryOptions{Attempts: 30, Base: time.Millisecond, Max: 5 * time.Millisecond}

func openS3(t *testing.T, o blob.S3Options) *blob.S3 {
	t.Helper()
	o.Retry = quick
	s, err := blob.OpenS3(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestS3 has all tests against one server.
func TestS3(t *testing.T) {
	server := blobtest.StartServer(t)
	t.Run("Conforms", func(t *testing.T) {
		var n atomic.Int64
		blobtest.Run(t, blobtest.Options{Open: func(t *testing.T) (blob.Store, func() blob.Store) {
			o := server.Bucket(t, fmt.Sprintf("bucket-%d", n.Add(1)), false)
			if n.Load()%2 == 0 {
				o.Prefix = "backups/one"
			}
			return openS3(t, o), func() blob.Store { return openS3(t, o) }
		}})
	})
	t.Run("Lock", func(t *testing.T) { testLock(t, server) })
	t.Run("Faults", func(t *testing.T) { testS3Faults(t, server) })
	t.Run("TLS", func(t *testing.T) { testTLS(t, server) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, server) })
	t.Run("Pages", func(t *testing.T) { testPages(t, server) })
}

// testLock: what is locked nobody deletes, and what is not any more goes with all its versions.
func testLock(t *testing.T, server *blobtest.Server) {
	ctx := t.Context()
	o := server.Bucket(t, "locked", true)
	o.LockFor = time.Hour
	st := openS3(t, o)
	large := bytes.Repeat([]byte("x"), 9<<20)
	w, err := st.Create(ctx, "data/aa/large")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(large); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Commit(), st.Put(ctx, "log/1", []byte("x"))); err != nil {
		t.Fatal(err)
	}
	if err := st.Put(ctx, "log/1", []byte("y")); !errors.Is(err, blob.ErrExists) {
		t.Errorf("Put over what is locked: %v", err)
	}
	for _, name := range []string{"log/1", "data/aa/large"} {
		if err := st.Delete(ctx, name); !errors.Is(err, blob.ErrReadOnly) {
			t.Errorf("Delete of %s, which is locked: %v", name, err)
		}
		if _, err := st.Get(ctx, name, 10<<20); err != nil {
			t.Errorf("%s after the attempt: %v", name, err)
		}
	}
	o.LockFor = 1500 * time.Millisecond
	short := openS3(t, o)
	if err := errors.Join(short.Put(ctx, "short", []byte("x")), short.Put(ctx, "extended", []byte("x")), short.Extend(ctx, "extended", time.Now().Add(time.Hour)),
		short.Extend(ctx, "extended", time.Now().Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := short.Delete(ctx, "short")
		if err == nil {
			break
		}
		if !errors.Is(err, blob.ErrReadOnly) || time.Now().After(deadline) {
			t.Fatalf("Delete after the lock has ended: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := short.Get(ctx, "short", 1); !errors.Is(err, blob.ErrNotFound) {
		t.Errorf("what was deleted: %v", err)
	}
	if err := short.Delete(ctx, "extended"); !errors.Is(err, blob.ErrReadOnly) {
		t.Errorf("Delete of what was locked for longer: %v", err)
	}
	if l, ok := blob.As[blob.Locker](blob.NewRetry(short, quick)); !ok || l.Lock() != o.LockFor {
		t.Error("the lock is not seen through wrappers")
	}
}

// proxy stands before the server and loses requests, answers and the ends of answers.
func proxy(t *testing.T, server *blobtest.Server, share float64) (endpoint string, lost *atomic.Int64) {
	to, _ := url.Parse("http://" + server.Endpoint)
	back := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(502) }}
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(3, 3))
	lost = &atomic.Int64{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		hit, how := r.Float64() < share, r.IntN(4)
		mu.Unlock()
		if !hit {
			back.ServeHTTP(w, req)
			return
		}
		lost.Add(1)
		switch how {
		case 0: // the request never came
			panic(http.ErrAbortHandler)
		case 1: // the answer is lost
			back.ServeHTTP(httptest.NewRecorder(), req)
			panic(http.ErrAbortHandler)
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, "<Error><Code>SlowDown</Code><Message>too fast</Message></Error>")
		case 3: // the answer breaks off
			rec := httptest.NewRecorder()
			back.ServeHTTP(rec, req)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(front.Close)
	return strings.TrimPrefix(front.URL, "http://"), lost
}

// testS3Faults: over a link that loses a fifth of all requests and answers the store keeps all its promises.
func testS3Faults(t *testing.T, server *blobtest.Server) {
	endpoint, lost := proxy(t, server, 0.2)
	var n atomic.Int64
	blobtest.Run(t, blobtest.Options{Large: 20 << 20, Open: func(t *testing.T) (blob.Store, func() blob.Store) {
		o := server.Bucket(t, fmt.Sprintf("faulty-%d", n.Add(1)), false)
		o.Endpoint = endpoint
		return blob.NewRetry(openS3(t, o), quick), func() blob.Store { return blob.NewRetry(openS3(t, o), quick) }
	}})
	if lost.Load() < 50 {
		t.Errorf("only %d requests were lost", lost.Load())
	}
}

func testTLS(t *testing.T, server *blobtest.Server) {
	to, _ := url.Parse("http://" + server.Endpoint)
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host }})
	front.Config.ErrorLog = log.New(io.Discard, "", 0)
	front.StartTLS()
	t.Cleanup(front.Close)
	o := server.Bucket(t, "tls", false)
	o.Endpoint, o.Insecure = strings.TrimPrefix(front.URL, "https://"), false
	o.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}))
	st := openS3(t, o)
	if err := st.Put(t.Context(), "config", []byte("x")); err != nil {
		t.Fatal(err)
	}
	w, err := st.Create(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 9<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := blob.CheckConditional(t.Context(), st, "config"); err != nil {
		t.Error(err)
	}
	o.CA = ""
	if err := openS3(t, o).Put(t.Context(), "a", nil); err == nil {
		t.Error("a server with an unknown certificate was believed")
	}
	o.CA = "nonsense"
	if _, err := blob.OpenS3(o); err == nil {
		t.Error("a CA that is none was taken")
	}
}

// testRefused: what the server refuses for good is not tried again, and says what is wrong.
func testRefused(t *testing.T, server *blobtest.Server) {
	o := server.Bucket(t, "refused", false)
	start := time.Now()
	wrong := o
	wrong.SecretKey = "wrong"
	wrongKey := openS3(t, wrong).Put(t.Context(), "a", nil)
	none := o
	none.Bucket = "none"
	noBucket := openS3(t, none).Put(t.Context(), "a", nil)
	if wrongKey == nil || noBucket == nil || errors.Is(noBucket, blob.ErrNotFound) || strings.Contains(wrongKey.Error(), "tried") || !strings.Contains(noBucket.Error(), "make the bucket") {
		t.Errorf("a wrong key: %v; no bucket: %v", wrongKey, noBucket)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to be refused", took)
	}
	if _, err := blob.OpenS3(blob.S3Options{}); err == nil {
		t.Error("no bucket was taken")
	}
}

// TestS3Errors: what servers say in their own ways means one thing here.
func TestS3Errors(t *testing.T) {
	for _, c := range []struct {
		status        int
		code, message string
		want          error
	}{
		{403, "AccessDenied", "no", blob.ErrReadOnly}, {400, "InvalidRequest", "Object is WORM protected and cannot be overwritten", blob.ErrReadOnly},
		{507, "XMinioStorageFull", "full", blob.ErrFull}, {403, "QuotaExceeded", "full", blob.ErrFull}, {412, "PreconditionFailed", "there", blob.ErrExists},
		{404, "NoSuchKey", "none", blob.ErrNotFound},
	} {
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.WriteHeader(c.status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", c.code, c.message)
		}))
		st := openS3(t, blob.S3Options{Endpoint: strings.TrimPrefix(front.URL, "http://"), Bucket: "bucket", Region: "us-east-1", AccessKey: "a", SecretKey: "b", Insecure: true})
		if err := st.Put(t.Context(), "a", []byte("x")); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.code, err, c.want)
		}
		front.Close()
	}
}

// testPages lists more than a page.
func testPages(t *testing.T, server *blobtest.Server) {
	st := openS3(t, server.Bucket(t, "pages", false))
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := k; i < 1203; i += 4 {
				if err := st.Put(t.Context(), fmt.Sprintf("data/%02x/%04d", i%256, i), nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	n, last := 0, ""
	for i, err := range st.List(t.Context(), "data/", "") {
		if err != nil {
			t.Fatal(err)
		}
		if i.Name <= last {
			t.Fatalf("%s after %s", i.Name, last)
		}
		n, last = n+1, i.Name
	}
	if n != 1203 {
		t.Errorf("listed %d, want 1203", n)
	}
}
