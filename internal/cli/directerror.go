package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"drover/internal/backup"
	"drover/internal/blob"
	"drover/internal/chunkstore"
)

// directError gives the errors of a repository their exit codes and remedies.
func directError(err error) error {
	var f *failure
	var use usageError
	if err == nil || errors.As(err, &f) || errors.As(err, &use) {
		return err
	}
	for _, x := range []struct {
		is   error
		code int
		hint string
	}{
		{chunkstore.ErrWrongKey, exitDenied, "give the passphrase or the recovery key by --passphrase-file or $" + envPassphrase},
		{chunkstore.ErrForeign, exitNotFound, "is the path right? a repository has a file \"config\" at its top; a new one is made by: drover repository init LOCATION"},
		{chunkstore.ErrNewer, exitFailed, "use the Drover that wrote to it last, or a newer one"},
		{chunkstore.ErrKept, exitPrecondition, "it was marked to be kept; the manager takes the mark away: drover backup keep POINT --off"},
		{chunkstore.ErrEnded, exitConflict, "another program took this one for dead and ended its session; nothing acknowledged is lost: run the command again"},
		{blob.ErrLocation, exitUsage, "a location is a directory, or s3://BUCKET/PREFIX"},
		{blob.ErrFull, exitPrecondition, "nothing that was there is lost; make room: drover repository forget LOCATION --keep RETENTION, then drover repository collect LOCATION"},
		{syscall.ENOSPC, exitPrecondition, "make room there, or write elsewhere"},
		{blob.ErrReadOnly, exitDenied, "this needs a location that can be written to; points, restore, files, get, nbd and scrub do with one that is only read"},
		{chunkstore.ErrDamaged, exitFailed, "nothing wrong was returned; see what is affected, and repair what can be: drover repository scrub LOCATION"},
		{backup.ErrNotFound, exitNotFound, "see what is there: drover repository points LOCATION"},
		{chunkstore.ErrGone, exitNotFound, "see what is there: drover repository points LOCATION; if it should be, then: drover repository scrub LOCATION"},
		{fs.ErrPermission, exitDenied, ""},
	} {
		if errors.Is(err, x.is) {
			return &failure{code: x.code, err: err, hint: x.hint}
		}
	}
	return err
}

// vacant refuses a directory in which something else lies: a repository is not to be mixed with it.
func vacant(location string) error {
	if strings.Contains(location, "://") {
		return nil // others may use the bucket
	}
	list, err := os.ReadDir(location)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return directError(err)
	}
	for _, e := range list {
		switch e.Name() {
		case "config":
			return &failure{code: exitConflict, err: errors.New("there is a repository in " + location + " already"), hint: "use it, or give another directory"}
		case "lost+found", "keys", "tmp": // of the file system, or of an init that did not end
		default:
			return &failure{code: exitPrecondition, err: errors.New(location + " is not empty: it has " + e.Name()), hint: "give a directory of its own: " + filepath.Join(location, "drover")}
		}
	}
	return nil
}
