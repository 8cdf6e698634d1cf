// Command tproxy is a TCP reverse proxy and load balancer.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitDone   = 0
	exitFailed = 1 // bad configuration, cannot bind
	exitUsage  = 2
	exitCut    = 3 // stopped, but sessions were cut at the drain deadline
)

// A status is an exit status other than done or failed, as an error with nothing more to say.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// A misuse is an error in the command line that only the command itself could find.
type misuse struct{ error }

func (m misuse) Unwrap() error { return m.error }

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

// execute runs one command line. What goes wrong before a command runs is wrong usage.
func execute(args []string, stdout, stderr io.Writer) int {
	ran := false
	root := &cobra.Command{
		Use:           "tproxy",
		Short:         "A TCP reverse proxy and load balancer",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			// cobra looks at these only after this function.
			if err := errors.Join(c.ValidateRequiredFlags(), c.ValidateFlagGroups()); err != nil {
				return err
			}
			ran = true
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(runCommand(), forwardCommand(), demoCommand(), checkCommand(),
		statusCommand(), sessionsCommand(), stateCommand("drain"), stateCommand("maint"), stateCommand("ready"), killCommand(),
		rebalanceCommand(), reloadCommand(), upgradeCommand(), doctorCommand(), explainCommand(), versionCommand(), completionCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	if s, ok := errors.AsType[status](err); ok {
		return int(s)
	}
	printError(stderr, err)
	if _, wrong := errors.AsType[misuse](err); wrong || !ran {
		fmt.Fprintf(stderr, "Run 'tproxy --help' for usage.\n")
		return exitUsage
	}
	return exitFailed
}
