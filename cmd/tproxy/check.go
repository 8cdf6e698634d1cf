package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/tproxy/tproxy/internal/config"
)

// A source is where the configuration comes from.
type source struct {
	file string
	set  []string
}

func (s *source) flags(c *cobra.Command) {
	c.Flags().StringVarP(&s.file, "config", "c", "", "configuration `FILE` (YAML; TOML and JSON by extension)")
	c.Flags().StringArrayVar(&s.set, "set", nil, "override a `KEY=VALUE`, as listeners.web.max_connections=100 (repeatable)")
	c.MarkFlagRequired("config")
}

func (s *source) load() (*config.Config, error) {
	return config.Load(s.file, config.Options{Environ: os.Environ(), Set: s.set})
}

// printError prints one line a mistake.
func printError(w io.Writer, err error) {
	if mistakes := config.Mistakes(err); mistakes != nil {
		for _, m := range mistakes {
			fmt.Fprintln(w, m)
		}
		return
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			printError(w, e)
		}
		return
	}
	fmt.Fprintf(w, "tproxy: %v\n", err)
}

func checkCommand() *cobra.Command {
	var from source
	var dump bool
	c := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Validate a configuration; print every mistake in it",
		Long: `Check loads and validates a configuration like run does, with the environment and --set. It binds nothing, resolves nothing and writes
nothing. It prints every mistake, one line each, and exits with status 1 if there is any.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := from.load()
			if err != nil {
				return err
			}
			if dump {
				return config.Dump(c.OutOrStdout(), cfg)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: ok\n", from.file)
			return nil
		},
	}
	from.flags(c)
	c.Flags().BoolVar(&dump, "dump", false, "print the effective configuration with all defaults")
	return c
}
