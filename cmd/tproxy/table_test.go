package main

import (
	"strings"
	"testing"
	"time"
)

func TestTableAlignsAndObeysNobody(t *testing.T) {
	var b strings.Builder
	table := newTable(&b, "NAME", "SAID")
	table.row("one", "\x1b[2Jhello\tyou\n")
	table.row("seventeen", "")
	table.row("drei", "grüß")
	if err := table.print(); err != nil {
		t.Fatal(err)
	}
	const want = "NAME       SAID\n" + `one        \x1b[2Jhello\tyou\n` + "\nseventeen  -\ndrei       grüß\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestAgesAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0s", 1500 * time.Millisecond: "1.5s", 61 * time.Second: "1m01s", 3*time.Hour + 4*time.Minute: "3h04m", 49 * time.Hour: "2d01h",
	} {
		if got := age(d.Milliseconds()); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestSizesAreShort(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 999_949: "999.9 kB", 999_950: "1.0 MB", 1 << 40: "1.1 TB", 1<<64 - 1: "18.4 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
