package filewatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// A watched file, and what was told.
type watched struct {
	t    *testing.T
	told chan struct{}
}

func start(t *testing.T, path string) *watched {
	t.Helper()
	f, err := New(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Trouble = func(err error) { t.Logf("trouble: %v", err) }
	w := &watched{t, make(chan struct{}, 100)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, func() { w.told <- struct{}{} })
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return w
}

// changes waits until a change is told of.
func (w *watched) changes() {
	w.t.Helper()
	select {
	case <-w.told:
	case <-time.After(patience):
		w.t.Fatal("the change was not told of")
	}
}

// quiet checks that nothing was told of until something else is, which change does.
func (w *watched) quiet(change func()) {
	w.t.Helper()
	<-time.After(2 * Settle) // what was done before has settled
	change()
	w.changes()
	select {
	case <-w.told:
		w.t.Error("told of what was no change")
	case <-time.After(2 * Settle):
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// put replaces the file in one step, so that it is never seen half written.
func put(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	must(t, os.Rename(path+".new", path))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWriteInPlaceIsAChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	write(t, path, "two")
	w.changes()
	write(t, path, "three")
	w.changes()
}

// TestSaveOfAnEditorIsAChange as vim does it: the old file becomes the backup, a new one is written, the backup is removed.
func TestSaveOfAnEditorIsAChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	for _, text := range []string{"two", "three"} {
		must(t, os.Rename(path, path+"~"))
		write(t, path, text)
		must(t, os.Remove(path+"~"))
		w.changes()
	}
}

func TestRenameOverTheFileIsAChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	for _, text := range []string{"two", "three"} {
		put(t, path, text)
		w.changes()
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		if runtime.GOOS == "windows" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
}

// TestSwapOfALinkIsAChange as Kubernetes does it with the files of a ConfigMap.
func TestSwapOfALinkIsAChange(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	version := func(name, text string) {
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		write(t, filepath.Join(dir, name, "file"), text)
	}
	swap := func(name string) {
		link(t, name, filepath.Join(dir, "..data_tmp"))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	version("..1", "one")
	swap("..1")
	link(t, filepath.Join("..data", "file"), filepath.Join(dir, "file"))
	w := start(t, filepath.Join(dir, "file"))
	for _, v := range []string{"2", "3"} {
		version(".."+v, v)
		swap(".." + v)
		w.changes()
		must(t, os.RemoveAll(filepath.Join(dir, "..1")))
	}
	write(t, filepath.Join(dir, "..3", "file"), "in place") // behind both links
	w.changes()
}

func TestFileThatIsGoneAndComesBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	must(t, os.Remove(path))
	<-time.After(2 * Settle)
	put(t, path, "one") // the same: no change
	w.quiet(func() { put(t, path, "two") })
	must(t, os.Remove(path))
	<-time.After(2 * Settle)
	put(t, path, "three")
	w.changes()
}

func TestSameContentIsNoChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	now := time.Now().Add(time.Hour)
	must(t, os.Chtimes(path, now, now))
	put(t, path, "one")
	write(t, filepath.Join(filepath.Dir(path), "other"), "x")
	w.quiet(func() { put(t, path, "two") })
}

func TestChangeBeforeTheWatchBeginsIsTold(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	f, err := New(path)
	must(t, err)
	write(t, path, "two")
	ctx, stop := context.WithCancel(context.Background())
	told := 0
	f.Run(ctx, func() { told++; stop() })
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// TestBusyNeighbourHoldsUpNothing: a file in the same folder that is written all the time, as a journal is.
func TestBusyNeighbourHoldsUpNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	write(t, path, "one")
	w := start(t, path)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			os.WriteFile(path+".log", []byte("x"), 0o600)
		}
	}()
	defer func() {
		stop()
		<-done
	}()
	write(t, path, "two")
	w.changes()
}

func TestRouteNamesEveryLink(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	in := func(names ...string) string { return filepath.Join(append([]string{dir}, names...)...) }
	must(t, os.MkdirAll(in("real", "deep"), 0o700))
	write(t, in("real", "deep", "file"), "x")
	link(t, "real", in("folder"))
	link(t, filepath.Join("..", "real", "deep", "file"), in("real", "up"))
	link(t, in("real", "deep"), in("absolute"))
	link(t, "circle", in("circle"))
	for path, want := range map[string][]string{
		in("real", "deep", "file"):   {in("real", "deep", "file")},
		in("folder", "deep", "file"): {in("folder"), in("real", "deep", "file")},
		in("folder", "up"):           {in("folder"), in("real", "deep", "file"), in("real", "up")},
		in("absolute", "file"):       {in("absolute"), in("real", "deep", "file")},
		in("folder", "none", "file"): {in("folder"), in("real", "none")},
		in("circle"):                 {in("circle")},
	} {
		r := find(path)
		var steps []string
		for s := range r.steps {
			steps = append(steps, s)
			if !r.folders[filepath.Dir(s)] {
				t.Errorf("%s: the folder of %s is not watched", path, s)
			}
		}
		if slices.Sort(steps); !slices.Equal(steps, want) {
			t.Errorf("%s: %q, want %q", path, steps, want)
		}
	}
}

func TestWhatIsNoFileHasNoContent(t *testing.T) {
	if _, err := digest(t.TempDir()); !errors.Is(err, errNoFile) {
		t.Errorf("a folder: %v", err)
	}
}
