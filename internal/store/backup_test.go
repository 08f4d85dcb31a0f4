package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

func TestBackupRestoreRoundTrip(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := openTest(t, filepath.Join(dir, "old"))
	vms := vmsOf(t, s)
	vm := create(t, vms, newVM("a", 3))
	var buf bytes.Buffer
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	info, err := s.Backup(ctx, &buf, now)
	if err != nil {
		t.Fatal(err)
	}
	create(t, vms, newVM("later", 1)) // not in it
	if !info.Created.Equal(now) || info.Revision < vm.Meta.Revision || info.Size == 0 || info.EtcdVersion == "" {
		t.Errorf("info: %+v", info)
	}
	if got, err := VerifyBackup(bytes.NewReader(buf.Bytes())); err != nil || got != info {
		t.Errorf("verify: %+v, %v; want %+v", got, err, info)
	}
	file := filepath.Join(dir, "backup")
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Restore(ctx, file, filepath.Join(dir, "old"), testLog(t))
	wantErr(t, err, ErrExists, "not empty")

	fresh := filepath.Join(dir, "deep", "new")
	if got, err := Restore(ctx, file, fresh, testLog(t)); err != nil || got != info {
		t.Fatalf("restore: %+v, %v", got, err)
	}
	s2 := openTest(t, fresh)
	vms2 := vmsOf(t, s2)
	list, _, err := vms2.List(ctx)
	if err != nil || len(list) != 1 || !proto.Equal(list[0], vm) {
		t.Fatalf("restored: %v, %v", list, err)
	}
	rev, err := s2.Revision(ctx)
	if err != nil || rev < info.Revision+revisionBump {
		t.Errorf("revision %d goes back behind what was seen after the backup at %d: %v", rev, info.Revision, err)
	}
	list[0].Spec.Cpus = 9
	if err := vms2.Update(ctx, list[0]); err != nil {
		t.Fatal(err)
	}
	// A follower of the old state starts anew instead of missing what never happened here.
	ch := follow(t, vms2, vm.Meta.Revision+1)
	wantBatch(t, ch, "reset() put(a) synced() ")

	left, err := filepath.Glob(filepath.Join(dir, "deep", ".restore-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("restore left %v, %v", left, err)
	}
}

func TestDamagedBackupsAreRefused(t *testing.T) {
	ctx, dir := testContext(t), t.TempDir()
	s := openTest(t, filepath.Join(dir, "old"))
	create(t, vmsOf(t, s), newVM("a", 3))
	var buf bytes.Buffer
	if _, err := s.Backup(ctx, &buf, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	good := buf.Bytes()
	damage := map[string][]byte{"empty": nil, "something else": bytes.Repeat([]byte("hello"), 5000), "added": append(bytes.Clone(good), 0)}
	for _, n := range []int{5, 12, 30, trailerSize, len(good) / 2, len(good) - trailerSize, len(good) - 1} {
		damage[fmt.Sprint("cut at ", n)] = good[:n]
	}
	for _, n := range []int{0, 9, 14, 30, 500, len(good) / 2, len(good) - trailerSize, len(good) - 1} {
		b := bytes.Clone(good)
		b[n] ^= 1
		damage[fmt.Sprint("flipped at ", n)] = b
	}
	for name, b := range damage {
		if _, err := VerifyBackup(bytes.NewReader(b)); !errors.Is(err, ErrBadBackup) {
			t.Errorf("%s: verify says %v", name, err)
		}
		file, to := filepath.Join(dir, "bad"), filepath.Join(dir, "to")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(ctx, file, to, testLog(t)); !errors.Is(err, ErrBadBackup) {
			t.Errorf("%s: restore says %v", name, err)
		}
		if _, err := os.Stat(to); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: restore left something: %v", name, err)
		}
	}
}

func FuzzReadBackup(f *testing.F) {
	f.Add([]byte(backupMagic + "\x00\x00\x00\x01\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := VerifyBackup(bytes.NewReader(b)); err != nil && !errors.Is(err, ErrBadBackup) {
			t.Fatal(err)
		}
	})
}
