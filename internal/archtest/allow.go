package archtest

// Allowance is an exception from one rule for one file, or for one package
// where the rule speaks of packages. The list is to stay short.
type Allowance struct {
	Rule, Path string
	Reason     string
}

// Allowed are the exceptions.
func Allowed() []Allowance {
	return []Allowance{
		{"background", "internal/store/zap.go", "zap's core interface carries no context"},
		{"background", "internal/lab/daemon.go", "the main function of a lab's own process"},
		{"background", "internal/lab/fleettest.go", "a test harness: it cleans up after the test's context has ended"},
		{"background", "internal/lab/harness.go", "a test harness: it cleans up after the test's context has ended"},
	}
}
