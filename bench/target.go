//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// direct is the name of the target without a proxy.
const direct = "direct"

// A target is what a load goes through: a proxy that is started for each measurement, one that runs already, or nothing.
type target struct {
	name    string
	command func(listen, backend, dir string) command
	running *runningPeer
}

// A command starts a proxy. hint says how to get it.
type command struct {
	program     string
	args        []string
	versionArgs []string // nil: it is built from this checkout
	hint        string
	configFile  string
	config      string
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

// start runs the proxy on a free port and waits until it serves.
func (t target) start(backend string, core int, dir string) (p *process, listen string, err error) {
	listen, err = freeAddress()
	if err != nil {
		return nil, "", err
	}
	c := t.command(listen, backend, dir)
	if err := os.WriteFile(c.configFile, []byte(c.config), 0o600); err != nil {
		return nil, "", err
	}
	if p, err = startOn(core, exec.Command(c.program, c.args...)); err != nil {
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
	c := t.command("", "", "")
	if _, err := exec.LookPath(c.program); err != nil {
		return fmt.Errorf("%w (%s)", err, c.hint)
	}
	return nil
}

// version is the first number in what the program says of its version, or, for a program that has none yet, the commit of this checkout; or "".
func (t target) version() string {
	if t.command == nil {
		return ""
	}
	c := t.command("", "", "")
	if c.versionArgs == nil {
		commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
		if err != nil {
			return ""
		}
		return "at commit " + strings.TrimSpace(string(commit))
	}
	out, err := exec.Command(c.program, c.versionArgs...).CombinedOutput()
	if err != nil {
		return ""
	}
	return versionNumber.FindString(string(out))
}

func tproxyCommand(program string) func(listen, backend, dir string) command {
	return func(listen, backend, dir string) command {
		file := filepath.Join(dir, "tproxy.yaml")
		return command{
			program: program, args: []string{"run", "-c", file}, hint: "build ./cmd/tproxy",
			configFile: file,
			config: fmt.Sprintf(`
listeners: {bench: {address: %q, group: bench}}
groups: {bench: {backends: [%q]}}
admin: {address: ""}
log: {level: error, sessions: {close: false}}
`, listen, backend),
		}
	}
}

func haproxyCommand(program string) func(listen, backend, dir string) command {
	return func(listen, backend, dir string) command {
		file := filepath.Join(dir, "haproxy.cfg")
		return command{
			program: program, args: []string{"-db", "-f", file}, versionArgs: []string{"-v"}, hint: "apt-get install haproxy, or -haproxy ''",
			configFile: file,
			// 9,400 sessions with 500 pipes fit a limit of 20,000 descriptors.
			config: fmt.Sprintf(`
global
    nbthread 1
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
`, listen, backend),
		}
	}
}

func nginxCommand(program string) func(listen, backend, dir string) command {
	return func(listen, backend, dir string) command {
		file := filepath.Join(dir, "nginx.conf")
		const module = "/usr/lib/nginx/modules/ngx_stream_module.so"
		load := ""
		if _, err := os.Stat(module); err == nil {
			load = "load_module " + module + ";"
		}
		return command{
			program: program, args: []string{"-c", file, "-p", dir, "-e", filepath.Join(dir, "nginx.err")}, versionArgs: []string{"-v"},
			hint:       "apt-get install nginx libnginx-mod-stream, or -nginx ''",
			configFile: file,
			config: fmt.Sprintf(`%s
daemon off;
worker_processes 1;
pid %s/nginx.pid;
error_log stderr crit;
events { worker_connections 19500; }
stream { server { listen %s backlog=4096; proxy_pass %s; proxy_timeout 1h; proxy_half_close on; } }
`, load, dir, listen, backend),
		}
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

// startBackend runs this program as the backend, on the load's core, and returns where it listens.
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
	p, err := startOn(-1, cmd)
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
