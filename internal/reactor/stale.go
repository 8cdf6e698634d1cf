package reactor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
)

// RemoveStale removes the file of a unix socket that a dead process left behind, so that path can be bound again. An abstract name has no file.
// Where somebody listens the error wraps [syscall.EADDRINUSE]; a file that is no socket is an error too, and stays.
func RemoveStale(path string) error {
	if strings.HasPrefix(path, "@") {
		return nil
	}
	file, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case file.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket; remove it, or choose another path")
	}
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("another process listens on it: %w", syscall.EADDRINUSE)
	case errors.Is(err, syscall.EAGAIN): // Linux: its queue is full
		return fmt.Errorf("another process listens on it, and takes no clients: %w", syscall.EADDRINUSE)
	case !isRefused(err):
		return fmt.Errorf("the socket is there and cannot be tried: %w", err)
	}
	return os.Remove(path)
}
