//go:build linux

package main

import (
	"bufio"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The names of the targets that are no peers.
const (
	ours   = "tproxy"
	limit  = "limit"
	direct = "direct"
)

// A target is what a load goes through: a proxy that is started for each measurement, one that runs already, or nothing.
type target struct {
	name    string
	command func(place) command
	running *runningPeer
}

// isPeer reports whether the target is another proxy.
func (t target) isPeer() bool { return t.name != ours && t.name != limit && t.name != direct }

// A place is where a proxy has to run. dir is for its files.
type place struct {
	listen, backend, dir string
	loops                int
}

// A command starts a proxy. hint says how to get it.
type command struct {
	program    string
	args       []string
	env        []string
	hint       string
	configFile string // "": it has none
	config     string
}

type runningPeer struct {
	name, address, backend string
	pids                   []int
}

func parsePeer(s, backend string) (runningPeer, error) {
	name, rest, _ := strings.Cut(s, "=")
	address, list, ok := strings.Cut(rest, ",")
	p := runningPeer{name: name, address: address, backend: backend}
	if !ok || name == "" || address == "" {
		return p, fmt.Errorf("%q is not name=address,pid", s)
	}
	for _, f := range strings.Split(list, ",") {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return p, fmt.Errorf("%q is not a process number", f)
		}
		p.pids = append(p.pids, pid)
	}
	return p, nil
}

// backendAddress is where the target's backend must listen; "" for anywhere.
func (t target) backendAddress() string {
	if t.running != nil {
		return t.running.backend
	}
	return ""
}

// start runs the proxy on a free port and on the given cores, and waits until it serves.
func (t target) start(backend string, loops int, cores []int, dir string) (p *process, listen string, err error) {
	listen, err = freeAddress()
	if err != nil {
		return nil, "", err
	}
	c := t.command(place{listen, backend, dir, loops})
	if c.configFile != "" {
		if err := os.WriteFile(c.configFile, []byte(c.config), 0o600); err != nil {
			return nil, "", err
		}
	}
	cmd := exec.Command(c.program, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	if p, err = startOn(cores, cmd); err != nil {
		return nil, "", err
	}
	// A whole session, not a connect: nginx listens before it has a process that serves.
	for range 500 {
		if (load{address: listen}).visit(new(message), 0) == nil {
			return p, listen, p.adopt()
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.stop()
	return nil, "", fmt.Errorf("%s does not serve on %s after 5 s: %s", t.name, listen, p.out.String())
}

func (t target) installed() error {
	c := t.command(place{})
	if _, err := exec.LookPath(c.program); err != nil {
		return fmt.Errorf("%w (%s)", err, c.hint)
	}
	return nil
}

func tproxyCommand(program string) func(place) command {
	return func(p place) command {
		file := filepath.Join(p.dir, "tproxy.yaml")
		return command{
			program: program, args: []string{"run", "-c", file}, hint: "build ./cmd/tproxy",
			env:        []string{fmt.Sprintf("GOMAXPROCS=%d", p.loops)}, // as many event loops
			configFile: file,
			config: fmt.Sprintf(`
listeners: {bench: {address: %q, group: bench}}
groups: {bench: {backends: [%q]}}
admin: {address: ""}
log: {level: error, sessions: {close: false}}
`, p.listen, p.backend),
		}
	}
}

func haproxyCommand(program string) func(place) command {
	return func(p place) command {
		file := filepath.Join(p.dir, "haproxy.cfg")
		return command{
			program: program, args: []string{"-db", "-f", file}, hint: "apt-get install haproxy, or -haproxy ''",
			configFile: file,
			// 9,400 sessions with 500 pipes fit a limit of 20,000 descriptors.
			config: fmt.Sprintf(`
global
    nbthread %d
    maxconn 9400
    maxpipes 500
    tune.pipesize 1048576
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    option splice-auto
    option splice-request
    option splice-response
    option tcp-smart-accept
    option tcp-smart-connect
listen bench
    bind %s backlog 4096
    server backend %s
`, p.loops, p.listen, p.backend),
		}
	}
}

func nginxCommand(program string) func(place) command {
	return func(p place) command {
		file := filepath.Join(p.dir, "nginx.conf")
		const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
		load := ""
		if _, err := os.Stat(module); err == nil {
			load = "load_module " + module + ";"
		}
		return command{
			program: program, args: []string{"-c", file, "-p", p.dir, "-e", filepath.Join(p.dir, "nginx.err")},
			hint:       "apt-get install nginx libnginx-mod-stream, or -nginx ''",
			configFile: file,
			config: fmt.Sprintf(`%s
daemon off;
worker_processes %d;
pid %s/nginx.pid;
error_log stderr crit;
events { worker_connections 19500; }
stream { server { listen %s backlog=4096; proxy_pass %s; proxy_timeout 1h; proxy_half_close on; } }
`, load, p.loops, p.dir, p.listen, p.backend),
		}
	}
}

//go:embed limit/relay.c
var relaySource []byte

// buildRelay compiles the relay without features in dir, and returns the program. A machine without the compiler is an exec.ErrNotFound.
func buildRelay(dir string) (program string, err error) {
	source, program := filepath.Join(dir, "relay.c"), filepath.Join(dir, "relay")
	if err := os.WriteFile(source, relaySource, 0o600); err != nil {
		return "", err
	}
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source).CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the limit: %w %s", err, out)
	}
	return program, nil
}

func relayCommand(program string) func(place) command {
	return func(p place) command {
		_, listen, _ := net.SplitHostPort(p.listen)
		_, backend, _ := net.SplitHostPort(p.backend)
		return command{program: program, args: []string{listen, backend, strconv.Itoa(p.loops)}, hint: "built from bench/limit/relay.c"}
	}
}

// freeAddress is a loopback address that nothing listens on now.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// startBackend runs this program as the backend, on the cores of this process, and returns where it listens.
func startBackend(listen string) (*process, string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.Command(exe, backendCommand)
	cmd.Env = append(os.Environ(), listenVariable+"="+listen)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	p, err := startOn(nil, cmd)
	if err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.stop()
		return nil, "", fmt.Errorf("backend: %w %s", err, p.out.String())
	}
	return p, strings.TrimSpace(line), nil
}
