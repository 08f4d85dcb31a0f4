package lab

import "drover/internal/cli"

// exitCode is an error that only says with which code to end the program.
func exitCode(n int) error { return cli.Exit{Code: n} }
