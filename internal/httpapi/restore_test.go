package httpapi

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"drover/internal/manager"
)

func restoreInto(t *testing.T, backup []byte) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	for _, cut := range []int{0, 100, len(backup) / 2, len(backup) - 2000} {
		bad := filepath.Join(t.TempDir(), "cut")
		if err := os.WriteFile(bad, backup[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		into := filepath.Join(t.TempDir(), "state")
		if _, err := manager.Restore(t.Context(), bad, into, log); err == nil {
			t.Errorf("a backup cut at %d of %d bytes was restored", cut, len(backup))
		}
		if left, _ := filepath.Glob(filepath.Join(into, "*")); len(left) > 0 {
			t.Errorf("a failed restore left %v", left)
		}
	}
	if _, err := manager.Restore(t.Context(), file, dir, log); err != nil {
		t.Fatal(err)
	}
	if _, err := manager.Restore(t.Context(), file, dir, log); err == nil {
		t.Error("a second restore into the same directory was allowed")
	}
	return dir
}
