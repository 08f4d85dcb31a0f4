package main

import (
	"context"
	"os"

	"drover/internal/cli"
	"drover/internal/lab"

	"github.com/spf13/cobra"
)

// version is set when a release is linked.
var version = "dev"

func main() {
	os.Exit(newApp().Main(context.Background(), os.Args[1:]))
}

// newApp is the command line with the commands of packages above it.
func newApp() *cli.App {
	return &cli.App{Version: version, More: []func(*cli.App) *cobra.Command{
		func(*cli.App) *cobra.Command { return lab.Command() },
	}}
}
