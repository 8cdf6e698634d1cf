package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPIDFileOfAnotherProcessStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	if err := writePID(path); err != nil {
		t.Fatal(err)
	}
	if !namesUs(path) {
		t.Error("the file does not name this process")
	}
	if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil { // a successor's
		t.Fatal(err)
	}
	removePID(path)
	if b, err := os.ReadFile(path); string(b) != "1\n" {
		t.Errorf("it holds %q, %v", b, err)
	}
	if err := writePID(path); err != nil || !namesUs(path) {
		t.Errorf("it cannot be taken back: %v", err)
	}
	removePID(path)
	if left, err := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOverwriteLeavesNothingOfTheOldContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	for _, content := range []string{"12345\n", "99\n", "123456\n"} {
		if err := overwrite(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); string(b) != content {
			t.Errorf("it holds %q, %v, want %q", b, err, content)
		}
	}
}
