package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
)

// writePID makes the file name this process. It appears whole; only where its folder is closed to us, as after a change of user, it is
// written over.
func writePID(path string) error {
	if path == "" {
		return nil
	}
	temporary := path + ".new"
	err := os.WriteFile(temporary, ownPID(), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if errors.Is(err, fs.ErrPermission) {
		err = overwrite(path, ownPID())
	}
	if err != nil {
		return fmt.Errorf("process.pid_file: %w", err)
	}
	return nil
}

// overwrite replaces what is in the file. It is never empty meanwhile: who reads it at that moment finds a process.
func overwrite(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Truncate(int64(len(b)))
	}
	return errors.Join(err, f.Close())
}

// removePID removes the file if it is still ours, or empties it where the folder is closed to us.
func removePID(path string) {
	if !namesUs(path) {
		return
	}
	if err := os.Remove(path); errors.Is(err, fs.ErrPermission) {
		os.Truncate(path, 0)
	}
}

func namesUs(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && string(b) == string(ownPID())
}

func ownPID() []byte { return []byte(strconv.Itoa(os.Getpid()) + "\n") }
