//go:build !unix

package handover

import (
	"errors"
	"io"
	"os"
	"syscall"
)

func (c Command) start() (process, io.ReadCloser, error) { return nil, nil, errors.ErrUnsupported }

// Duplicate is not supported on this system.
func Duplicate(syscall.Conn, string) (*os.File, error) { return nil, errors.ErrUnsupported }

func inherited() (io.WriteCloser, []Socket, error) { return nil, nil, nil }
