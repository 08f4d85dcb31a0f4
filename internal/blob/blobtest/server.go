package blobtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"drover/internal/blob"
)

// Server is a real S3 server on the loopback, which keeps its objects in a directory of the test.
type Server struct {
	Endpoint, AccessKey, SecretKey string
	client                         *minio.Client
}

// StartServer starts a server that ends with the test. One that can't be had fails the test.
func StartServer(t testing.TB) *Server {
	t.Helper()
	// Tests run in their package's directory, which a build with -trimpath does not know.
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil || root == "/" {
			break
		}
		root = filepath.Dir(root)
	}
	out, err := exec.Command(filepath.Join(root, "scripts", "s3server")).Output()
	if err != nil {
		t.Fatalf("scripts/s3server: %v", err)
	}
	bin := string(out[:len(out)-1])
	dir := t.TempDir()
	s := &Server{AccessKey: "drover", SecretKey: "drover-secret-of-tests"}
	for _, sub := range []string{"/objects", "/versions"} {
		if err := os.Mkdir(dir+sub, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for try := 0; ; try++ {
		if err := s.start(t, bin, dir); err == nil {
			break
		} else if try == 3 { // a port that another took meanwhile
			t.Fatal(err)
		}
	}
	s.client, err = minio.New(s.Endpoint, &minio.Options{Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) start(t testing.TB, bin, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	s.Endpoint = "127.0.0.1:" + strconv.Itoa(port)
	log, err := os.Create(dir + "/log")
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(bin, "--port", s.Endpoint, "--access", s.AccessKey, "--secret", s.SecretKey, "--quiet", "posix", "--versioning-dir", dir+"/versions", dir+"/objects")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		c, err := net.Dial("tcp", s.Endpoint)
		if err == nil {
			c.Close()
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			return nil
		}
		select {
		case err := <-ended:
			text, _ := os.ReadFile(dir + "/log")
			return fmt.Errorf("%s ended: %w: %s", bin, err, text)
		case <-deadline.C:
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("%s does not answer: %w", bin, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Bucket makes a bucket and says how to reach it.
func (s *Server) Bucket(t testing.TB, name string, locking bool) blob.S3Options {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.client.MakeBucket(ctx, name, minio.MakeBucketOptions{Region: "us-east-1", ObjectLocking: locking}); err != nil {
		t.Fatalf("bucket %s: %v", name, err)
	}
	return blob.S3Options{Endpoint: s.Endpoint, Region: "us-east-1", Bucket: name, AccessKey: s.AccessKey, SecretKey: s.SecretKey, Insecure: true}
}
