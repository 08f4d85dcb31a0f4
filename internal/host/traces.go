package host

import (
	"os"
	"path/filepath"

	"drover/internal/accel"
)

// Traces are where a host with this state directory leaves something outside of its directories: memory files, and, where
// there is cgroup v2, its group. Who removes a host with all that it ran removes these; after a Run that ended well with
// no VM left there is nothing in them. pins is its part of the switch, which goes on without an agent.
func Traces(stateDir string) (shm, cgroup, pins string) {
	a := agent{cfg: Config{StateDir: stateDir}}
	return shmDir(stateDir), a.cgroupDir(), filepath.Join("/sys/fs/bpf", pinName(stateDir))
}

func shmDir(stateDir string) string { return "/dev/shm/drover-" + shortHash(stateDir) }

// TellAccelerator writes down what a probe found, so that a host with this state directory need not probe again in the
// boot that r names.
func TellAccelerator(stateDir string, r *accel.Result) error {
	return writeJSON(filepath.Join(stateDir, accelFile), r)
}

// Joined reports whether a host with this state directory has its certificate.
func Joined(stateDir string) bool {
	_, err := os.Stat(filepath.Join(stateDir, credentialFile))
	return err == nil
}
