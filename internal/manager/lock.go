package manager

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockFile takes a file for this process's open handle alone until it is closed; false if another handle has it.
func lockFile(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}
