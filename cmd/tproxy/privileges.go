package main

import (
	"fmt"
	"os"

	"github.com/tproxy/tproxy/internal/config"
)

// dropPrivileges makes the process what process.user and process.group say, and gives it the files that it has made. Every
// address is bound by now, and nothing of the configuration runs yet.
func (i *instance) dropPrivileges(c *config.Config) error {
	id, err := identityOf(c.Process)
	if err != nil || id.assumed() {
		return err
	}
	if err := id.own(i.ownFiles(c)); err != nil {
		return fmt.Errorf("process.user: %w", err)
	}
	if p := c.Process.PIDFile; p != "" {
		// Its folder may be closed to the user, as /run is.
		f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("process.pid_file: %w", err)
		}
		f.Close()
		if err := id.own([]string{p}); err != nil {
			return fmt.Errorf("process.pid_file: %w", err)
		}
	}
	kept, err := id.assume()
	if err != nil {
		return fmt.Errorf("process.user: %w", err)
	}
	i.log.Info("user changed", "uid", os.Getuid(), "gid", os.Getgid(), "binds_privileged_ports", kept)
	return nil
}

// ownFiles are the journal and the unix sockets.
func (i *instance) ownFiles(c *config.Config) (paths []string) {
	if p := c.Log.Sessions.Path; p != "" {
		paths = append(paths, p)
	}
	own := func(a config.Address) {
		if a.Path != "" && a.Path[0] != '@' {
			paths = append(paths, a.Path)
		}
	}
	for _, l := range c.Listeners {
		for _, a := range l.Address {
			own(a)
		}
	}
	own(c.Admin.Address)
	return paths
}
