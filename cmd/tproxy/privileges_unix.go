//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"github.com/tproxy/tproxy/internal/config"
)

// An identity is whom the process is to be. The nil identity is whoever it is.
type identity struct {
	uid, gid int
	groups   []int // supplementary; nil: as they are
}

// identityOf is what process.user and process.group ask for. A number that nobody is listed under is taken as it is.
func identityOf(c config.Process) (*identity, error) {
	if c.User == "" && c.Group == "" {
		return nil, nil
	}
	id := &identity{uid: os.Geteuid(), gid: os.Getegid()}
	if c.User != "" {
		if err := id.become(c.User); err != nil {
			return nil, fmt.Errorf("process.user: %w", err)
		}
	}
	if c.Group != "" {
		g, err := user.LookupGroup(c.Group)
		switch n, isNumber := strconv.Atoi(c.Group); {
		case err == nil:
			id.gid, err = strconv.Atoi(g.Gid)
		case isNumber == nil && n >= 0:
			id.gid, err = n, nil
		}
		if err != nil {
			return nil, fmt.Errorf("process.group: %w", err)
		}
	}
	if id.uid < 0 || id.gid < 0 {
		return nil, errors.New("process.user: the number of a user without an entry needs process.group")
	}
	return id, nil
}

func (id *identity) become(name string) error {
	u, err := user.Lookup(name)
	if n, isNumber := strconv.Atoi(name); err != nil && isNumber == nil && n >= 0 {
		if u, err = user.LookupId(name); err != nil {
			id.uid, id.gid, id.groups = n, -1, []int{}
			return nil
		}
	}
	if err != nil {
		return err
	}
	groups, err := u.GroupIds()
	if err != nil {
		return err
	}
	n, err := numbers(append([]string{u.Uid, u.Gid}, groups...))
	if err != nil {
		return err
	}
	id.uid, id.gid, id.groups = n[0], n[1], n[2:]
	return nil
}

func numbers(texts []string) ([]int, error) {
	all := make([]int, len(texts))
	for i, t := range texts {
		var err error
		if all[i], err = strconv.Atoi(t); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// assumed reports whether the process is it already, as a successor is.
func (id *identity) assumed() bool {
	return id == nil || os.Getuid() == id.uid && os.Geteuid() == id.uid && os.Getgid() == id.gid && os.Getegid() == id.gid
}

// own makes files the identity's, those that are there.
func (id *identity) own(paths []string) error {
	for _, p := range paths {
		if err := os.Lchown(p, id.uid, id.gid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// assume makes the whole process the identity, for good. The right to bind ports below 1024 stays where the system can keep it: kept says so.
func (id *identity) assume() (kept bool, err error) {
	finish, err := keepBinding()
	if err != nil {
		return false, err
	}
	if id.groups != nil {
		groups := id.groups
		if !slices.Contains(groups, id.gid) {
			groups = append(groups, id.gid)
		}
		if err := syscall.Setgroups(groups); err != nil {
			return false, fmt.Errorf("set groups %v: %w", groups, err)
		}
	}
	if err := syscall.Setgid(id.gid); err != nil {
		return false, fmt.Errorf("become group %d: %w", id.gid, err)
	}
	if err := syscall.Setuid(id.uid); err != nil {
		return false, fmt.Errorf("become user %d: %w", id.uid, err)
	}
	return finish()
}
