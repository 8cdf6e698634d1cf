//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// occupy moves this process to the given cores, with as many processors for Go. The affinity of a running program is that of each of its threads, and a
// new thread has that of the one that made it: when no thread is new, all are moved.
func occupy(cores ...int) error {
	runtime.GOMAXPROCS(len(cores))
	set := cpuSet(cores)
	moved := make(map[string]bool)
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		before := len(moved)
		for _, t := range threads {
			if moved[t.Name()] {
				continue
			}
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := unix.SchedSetaffinity(id, &set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("move to the cores %v of %d: %w", cores, runtime.NumCPU(), err)
			}
			moved[t.Name()] = true
		}
		if len(moved) == before {
			return nil
		}
	}
}

func cpuSet(cores []int) (set unix.CPUSet) {
	for _, c := range cores {
		set.Set(c)
	}
	return set
}

// A process is a proxy or a backend. pids are it and its children.
type process struct {
	cmd  *exec.Cmd // nil for one that ran already
	pids []int
	out  bytes.Buffer // what it said; complete after stop
}

// startOn starts a program on the given cores, or on this process's without any. The child gets the affinity of the thread that forks, and dies with it.
func startOn(cores []int, cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.out
	}
	cmd.Stderr = &p.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if len(cores) > 0 {
		var old unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return nil, err
		}
		defer unix.SchedSetaffinity(0, &old)
		set := cpuSet(cores)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return nil, fmt.Errorf("run on the cores %v: %w", cores, err)
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.pids = []int{cmd.Process.Pid}
	return p, nil
}

// adopt adds the children that the process has by now to what is measured.
func (p *process) adopt() error {
	pid := p.cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return err
	}
	for _, f := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			return err
		}
		p.pids = append(p.pids, child)
	}
	return nil
}

// stop ends the process and waits for it.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	defer time.AfterFunc(3*time.Second, func() { p.cmd.Process.Kill() }).Stop()
	p.cmd.Wait()
}

// A use is what a process has used and holds.
type use struct {
	cpu         time.Duration
	resident    int // bytes
	descriptors int
}

// use reads what the process has used so far; nothing for a nil process.
func (p *process) use() (u use, err error) {
	if p == nil {
		return use{}, nil
	}
	for _, pid := range p.pids {
		cpu, err1 := processorTime(pid)
		resident, err2 := residentBytes(pid)
		fds, err3 := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err := errors.Join(err1, err2, err3); err != nil {
			return use{}, err
		}
		u.cpu += cpu
		u.resident += resident
		u.descriptors += len(fds)
	}
	return u, nil
}

// quiet reads what the process uses when it has closed what it was going to close: when it holds as many descriptors as a while before.
func (p *process) quiet() (u use, err error) {
	held := -1
	for range int(patience / settle) {
		if u, err = p.use(); err != nil || u.descriptors == held {
			return u, err
		}
		held = u.descriptors
		time.Sleep(settle)
	}
	return u, fmt.Errorf("the number of descriptors still changes after %v", patience)
}

// processorTime is the CPU time of a process to the nanosecond, where /proc/PID/stat counts in 10 ms: see clock_getcpuclockid(3) for the clock's number.
func processorTime(pid int) (time.Duration, error) {
	const sched = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|sched, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// residentBytes sums up the page table: VmRSS in /proc/PID/status lags by up to 64 pages a thread.
func residentBytes(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Rss:" {
			kib, err := strconv.Atoi(f[1])
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d: smaps_rollup has no Rss", pid)
}

// machine describes where this runs.
func machine() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	kernel := "Linux"
	if unix.Uname(&u) == nil {
		kernel = "Linux " + unix.ByteSliceToString(u.Release[:])
	}
	cores, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*")
	return fmt.Sprintf("%s, %d cores, %s, %s", model, len(cores), kernel, runtime.Version())
}

// loadAverage is that of the last minute: a measurement wants it near zero before.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}
