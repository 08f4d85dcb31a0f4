package lab

import (
	"context"

	"github.com/spf13/cobra"
)

// Command is "drover lab".
func Command() *cobra.Command {
	root := &cobra.Command{Use: "lab", Short: "Sites with real hosts, networks and VMs, on this machine alone"}
	var c FleetConfig
	up := &cobra.Command{Use: "up", RunE: func(cmd *cobra.Command, _ []string) error {
		c.Progress = func(s string) { cmd.PrintErrln(s) }
		f, err := UpFleet(cmd.Context(), c)
		if err != nil {
			return err
		}
		cmd.Println(f.Socket())
		return nil
	}}
	down := &cobra.Command{Use: "down", RunE: func(cmd *cobra.Command, _ []string) error {
		return Down(context.WithoutCancel(cmd.Context()), c.Root, c.Name)
	}}
	root.PersistentFlags().StringVar(&c.Name, "name", "demo", "")
	root.AddCommand(up, down, &cobra.Command{Use: "daemon NAME ROOT", Hidden: true, Run: func(*cobra.Command, []string) { MaybeDaemon() }})
	return root
}
