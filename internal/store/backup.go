package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"go.etcd.io/etcd/api/v3/version"
)

const (
	backupMagic   = "DROVERBK"
	backupVersion = 1
	maxHeader     = 64 << 10
	trailerSize   = 8 + sha256.Size
)

// ErrBadBackup: the file is not a backup, or not all of one, or not as it was written.
var ErrBadBackup = errors.New("not a valid backup of the state")

// BackupInfo describes a backup.
type BackupInfo struct {
	Created time.Time `json:"created"`
	// Revision up to which everything is in the backup.
	Revision    int64  `json:"revision"`
	EtcdVersion string `json:"etcd_version"`
	// Size of the etcd snapshot in bytes; known after verification.
	Size int64 `json:"-"`
}

// Backup writes a backup of everything in etcd as of one moment, stamped now. The format is in doc.go.
func (s *Store) Backup(ctx context.Context, w io.Writer, now time.Time) (BackupInfo, error) {
	info := BackupInfo{Created: now.UTC()}
	err := s.backup(ctx, w, &info)
	if err != nil {
		return BackupInfo{}, fmt.Errorf("back up the state: %w", err)
	}
	return info, nil
}

func (s *Store) backup(ctx context.Context, w io.Writer, info *BackupInfo) error {
	// The snapshot of a server in this process does not say its revision; it has at least what is there now.
	rev, err := s.Revision(ctx)
	if err != nil {
		return err
	}
	snap, err := s.client.SnapshotWithVersion(ctx)
	if err != nil {
		return translate(ctx, err)
	}
	defer snap.Snapshot.Close()
	// A server that has just started doesn't know the cluster's version yet; then this program's own etcd is meant.
	info.Revision, info.EtcdVersion = max(rev, snap.Header.GetRevision()), cmp.Or(snap.Version, version.Version)
	header, err := json.Marshal(info)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	var pre bytes.Buffer
	pre.WriteString(backupMagic)
	pre.Write(binary.BigEndian.AppendUint32(nil, backupVersion))
	pre.Write(binary.BigEndian.AppendUint32(nil, uint32(len(header))))
	pre.Write(header)
	if _, err := out.Write(pre.Bytes()); err != nil {
		return err
	}
	if info.Size, err = io.Copy(out, snap.Snapshot); err != nil {
		return err
	}
	if _, err := out.Write(binary.BigEndian.AppendUint64(nil, uint64(info.Size))); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// VerifyBackup reads a backup to its end and checks it.
func VerifyBackup(r io.Reader) (BackupInfo, error) {
	return readBackup(r, io.Discard)
}

// readBackup copies the etcd snapshot in r to snap and verifies all of r. What it wrote is good only if it
// returns no error.
func readBackup(r io.Reader, snap io.Writer) (BackupInfo, error) {
	var info BackupInfo
	bad := func(format string, a ...any) (BackupInfo, error) {
		return BackupInfo{}, fmt.Errorf("%w: %s", ErrBadBackup, fmt.Sprintf(format, a...))
	}
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	pre := make([]byte, len(backupMagic)+8)
	if _, err := io.ReadFull(in, pre); err != nil {
		return bad("it ends in its header")
	}
	if string(pre[:len(backupMagic)]) != backupMagic {
		return bad("it does not start as one")
	}
	if v := binary.BigEndian.Uint32(pre[len(backupMagic):]); v != backupVersion {
		return bad("its format is version %d, this Drover knows %d", v, backupVersion)
	}
	n := binary.BigEndian.Uint32(pre[len(backupMagic)+4:])
	if n > maxHeader {
		return bad("its header has %d bytes", n)
	}
	header := make([]byte, n)
	if _, err := io.ReadFull(in, header); err != nil {
		return bad("it ends in its header")
	}
	if err := json.Unmarshal(header, &info); err != nil {
		return bad("its header is garbled: %v", err)
	}
	trailer, size, err := copyBody(r, snap, sum)
	if err != nil {
		return BackupInfo{}, err
	}
	if trailer == nil {
		return bad("it is truncated")
	}
	sum.Write(trailer[:8])
	if binary.BigEndian.Uint64(trailer) != uint64(size) {
		return bad("it is truncated or has something added: %d bytes of state", size)
	}
	if !bytes.Equal(sum.Sum(nil), trailer[8:]) {
		return bad("its checksum does not match")
	}
	info.Size = size
	return info, nil
}

// copyBody copies r to dst and sum but for the trailer, which it returns; nil if r is shorter than that.
func copyBody(r io.Reader, dst io.Writer, sum hash.Hash) (trailer []byte, size int64, err error) {
	out := io.MultiWriter(dst, sum)
	buf := make([]byte, 256<<10)
	have := 0
	for {
		n, err := r.Read(buf[have:])
		have += n
		if body := have - trailerSize; body > 0 {
			if _, err := out.Write(buf[:body]); err != nil {
				return nil, 0, fmt.Errorf("copy the state: %w", err)
			}
			size += int64(body)
			copy(buf, buf[body:have])
			have = trailerSize
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, 0, fmt.Errorf("read the backup: %w", err)
		}
	}
	if have < trailerSize {
		return nil, 0, nil
	}
	return buf[:have], size, nil
}
