package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tproxy/tproxy/internal/config"
	"github.com/tproxy/tproxy/internal/journal"
	"github.com/tproxy/tproxy/proxy"
)

func TestLinesThatNobodyReadsAreLostCountedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		log, lines := openLog(w, config.Log{Format: "text", Level: "info"})
		const line = 1 << 10
		text := strings.Repeat("x", line)
		for range 2 * printLimit / line {
			log.Info(text)
		}
		read := make(chan string)
		go func() {
			all, _ := io.ReadAll(r)
			read <- string(all)
		}()
		synctest.Wait()
		lines.close()
		w.Close()
		got, told := <-read, 0
		i := strings.Index(got, "lines=")
		if i < 0 {
			t.Fatalf("of %d lines %d were written, and nothing is said", 2*printLimit/line, strings.Count(got, text))
		}
		fmt.Sscanf(got[i:], "lines=%d", &told)
		if n := strings.Count(got, text); n+told != 2*printLimit/line || n < printLimit/line/2 {
			t.Errorf("%d written and %d said to be lost, of %d", n, told, 2*printLimit/line)
		}
	})
}

func TestPrinterEndsWithAReaderThatNeverReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		p := newPrinter(w, func(int) {})
		fmt.Fprintln(p, "one")
		start := time.Now()
		p.close()
		if d := time.Since(start); d != printPatience {
			t.Errorf("it took %v", d)
		}
		if _, err := fmt.Fprintln(p, "two"); !errors.Is(err, errNotPrinted) {
			t.Errorf("a line after the end: %v", err)
		}
		r.Close() // ends the write
		<-p.done
	})
}

// A faulty writer fails while broken, and counts.
type faulty struct {
	broken bool
	calls  int
	got    bytes.Buffer
}

func (f *faulty) Write(b []byte) (int, error) {
	f.calls++
	if f.broken {
		return 0, errors.New("full")
	}
	return f.got.Write(b)
}

func TestLinesThatCannotBeWrittenAreToldWhenTheyCanAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &faulty{broken: true}
		log, lines := openLog(w, config.Log{Format: "text", Level: "info"})
		for range 3 {
			log.Info("gone")
		}
		synctest.Wait()
		if w.calls > 3 {
			t.Errorf("%d attempts to write three lines", w.calls)
		}
		w.broken = false
		log.Info("back")
		synctest.Wait()
		lines.close()
		if got := w.got.String(); strings.Contains(got, "gone") || !strings.Contains(got, "msg=back") || !strings.Contains(got, "lines=3\n") {
			t.Errorf("written: %s", got)
		}
	})
}

func TestPiecesAreWholeLines(t *testing.T) {
	long := strings.Repeat("l", pipeAtom) + "\n"
	short := strings.Repeat(strings.Repeat("s", 99)+"\n", 100)
	for text, want := range map[string]int{
		"a\n":        2,
		"a\nb\n":     4,
		"a\nno end":  2,
		"no end":     6,
		long + "a\n": len(long),
		"a\n" + long: 2,
		short:        4000,
		short[:4096]: 4000,
		long[1:]:     pipeAtom,
	} {
		if got := piece([]byte(text)); got != want {
			t.Errorf("a piece of %d bytes of %.10q…: %d, want %d", len(text), text, got, want)
		}
	}
}

func TestLogThatIsReadLosesNothing(t *testing.T) {
	var out bytes.Buffer
	log, lines := openLog(&out, config.Log{Format: "json", Level: "info"})
	for n := range 1000 {
		log.Info("line", "n", n)
	}
	lines.close()
	if n := strings.Count(out.String(), "\n"); n != 1000 || !strings.Contains(out.String(), `"n":999}`) {
		t.Errorf("%d lines", n)
	}
}

func TestSessionsThatTheLogLosesAreCountedByTheJournal(t *testing.T) {
	w := &faulty{broken: true}
	log, lines := openLog(w, config.Log{Format: "text", Level: "info"})
	j, err := journal.Open(journal.Options{Close: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	lines.close() // from here on the log takes nothing
	for range 3 {
		j.Observe(proxy.Event{Kind: proxy.SessionClosed})
	}
	j.Close()
	if n := j.Dropped(); n != 3 {
		t.Errorf("%d dropped, of 3", n)
	}
}
