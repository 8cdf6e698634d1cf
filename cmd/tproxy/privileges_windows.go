package main

import (
	"errors"

	"github.com/tproxy/tproxy/internal/config"
)

// An identity is nothing that a process could change here.
type identity struct{}

func identityOf(c config.Process) (*identity, error) {
	if c.User != "" || c.Group != "" {
		return nil, errors.New("process.user and process.group: not supported on this system")
	}
	return nil, nil
}

func (*identity) assumed() bool { return true }

func (*identity) own([]string) error { return nil }

func (*identity) assume() (kept bool, err error) { return false, nil }
