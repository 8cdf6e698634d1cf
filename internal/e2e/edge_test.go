//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tproxy/tproxy/internal/proxyproto"
)

// startTeller runs a backend that gets PROXY headers and says in a line what they tell: "FROM TO AUTHORITY ALPN", LOCAL for from and to.
func startTeller(t *testing.T) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	tell := func(c net.Conn) {
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		in := bufio.NewReaderSize(c, proxyproto.MaxSize)
		for need := 1; ; {
			if _, err := in.Peek(need); err != nil {
				return
			}
			b, _ := in.Peek(in.Buffered())
			h, n, err := proxyproto.Parse(b)
			if err == proxyproto.ErrIncomplete {
				need = n
				continue
			}
			switch {
			case err != nil:
				fmt.Fprintln(c, err)
			case h.Local:
				fmt.Fprintf(c, "LOCAL LOCAL %q %q\n", h.Authority, h.ALPN)
			default:
				fmt.Fprintf(c, "%s %s %q %q\n", h.Source.IP, h.Destination.IP, h.Authority, h.ALPN)
			}
			c.(*net.TCPConn).CloseWrite()
			in.Discard(n)
			io.Copy(io.Discard, in)
			return
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go tell(c)
		}
	}()
	return ln.Addr().String()
}

// hears connects to a way to a teller, and checks that it is told of this client.
func hears(t *testing.T, address string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if want := fmt.Sprintf("%s %s ", c.LocalAddr(), c.RemoteAddr()); err != nil || !strings.HasPrefix(line, want) {
		t.Errorf("the backend was told %q, %v, want %q", line, err, want)
	}
}

// startEdge runs tproxy with one listener and one group, with these options for them.
func startEdge(t *testing.T, listener, backend, group string) *proxy {
	t.Helper()
	p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main%s}}
groups: {main: {backends: ["%s"], health: {probe: none}%s}}
log: {format: json}
drain: {timeout: 1s}
`, listener, backend, group))
	p.host, p.port = p.listening()
	return p
}

const required = `, proxy_protocol: {accept: require, trusted: ["127.0.0.0/8"]}`

func TestChainShowsTheFirstClient(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			send := ", send_proxy: " + version
			last := startEdge(t, required, startTeller(t), send)
			second := startEdge(t, required, last.address(), send)
			first := startEdge(t, "", second.address(), send)
			for range 20 {
				hears(t, first.address())
			}
		})
	}
}

func startHAProxyTCP(t *testing.T, config string) {
	t.Helper()
	haproxy := need(t, "haproxy", "haproxy")
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	config = "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n" + config
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	launch(t, syscall.SIGTERM, exec.Command(haproxy, "-db", "-f", file))
}

func TestHAProxySendsHeaders(t *testing.T) {
	for _, option := range []string{"send-proxy", "send-proxy-v2"} {
		t.Run(option, func(t *testing.T) {
			p := startEdge(t, required, startTeller(t), ", send_proxy: v2")
			host, port := freeAddress(t)
			startHAProxyTCP(t, fmt.Sprintf("listen main\n bind %s:%s\n server tproxy %s %s\n", host, port, p.address(), option))
			eventually(t, soon, "HAProxy accepts", func() bool { return accepts(host, port) })
			hears(t, net.JoinHostPort(host, port))
		})
	}
}

func TestHAProxyTakesHeaders(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			host, port := freeAddress(t)
			startHAProxyTCP(t, fmt.Sprintf("listen main\n bind %s:%s accept-proxy\n server teller %s send-proxy-v2\n", host, port, startTeller(t)))
			eventually(t, soon, "HAProxy accepts", func() bool { return accepts(host, port) })
			hears(t, startEdge(t, "", net.JoinHostPort(host, port), ", send_proxy: "+version).address())
		})
	}
}

// nginx sends version 1, and takes both.
func TestNginxSendsAndTakesHeaders(t *testing.T) {
	nginx := need(t, "nginx", "nginx")
	need(t, "/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			dir := t.TempDir()
			host, taker := freeAddress(t)
			p := startEdge(t, required, net.JoinHostPort(host, taker), ", send_proxy: "+version)
			_, sender := freeAddress(t)
			config := filepath.Join(dir, "nginx.conf")
			err := os.WriteFile(config, fmt.Appendf(nil, `
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid %[1]s/pid;
error_log %[1]s/error.log;
events {}
stream {
	server { listen %[2]s:%[3]s; proxy_pass %[4]s; proxy_protocol on; }
	server { listen %[2]s:%[5]s proxy_protocol; set_real_ip_from 127.0.0.0/8; proxy_pass %[6]s; proxy_protocol on; }
}
`, dir, host, sender, p.address(), taker, startTeller(t)), 0o600)
			if err != nil {
				t.Fatal(err)
			}
			launch(t, syscall.SIGTERM, exec.Command(nginx, "-c", config, "-p", dir, "-e", filepath.Join(dir, "error.log")))
			eventually(t, soon, "nginx accepts", func() bool { return accepts(host, sender) && accepts(host, taker) })
			c, err := net.Dial("tcp", net.JoinHostPort(host, sender))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			// The destination is the taker's own: nginx replaces the source only.
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, c.LocalAddr().String()+" ") {
				t.Errorf("the backend was told %q, %v, want %s", line, err, c.LocalAddr())
			}
		})
	}
}

func TestCurlSendsHeaders(t *testing.T) {
	curl := need(t, "curl", "curl")
	p := startEdge(t, required, startTeller(t), ", send_proxy: v2")
	out := run(t, curl, "-sS", "--http0.9", "--max-time", "10", "--haproxy-protocol", "-w", "%{local_ip}:%{local_port}\n", "http://"+p.address()+"/")
	told, own, _ := strings.Cut(out, "\n")
	if own = strings.TrimSpace(own); own == "" || !strings.HasPrefix(told, own+" "+p.address()+" ") {
		t.Errorf("the backend was told %q; curl is %q", told, own)
	}
}

// certificate makes a self-signed one.
func certificate(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	openssl := need(t, "openssl", "openssl")
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	run(t, openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", cert,
		"-subj", "/CN="+name, "-addext", "subjectAltName=DNS:"+name, "-days", "2")
	return cert, key
}

// startRouted runs tproxy with a route for each name, to a backend each. Whoever asks for another name is refused.
func startRouted(t *testing.T, backends map[string]string) *proxy {
	t.Helper()
	var routes, groups []string
	for name, address := range backends {
		group := strings.ReplaceAll(name, ".", "-")
		routes = append(routes, fmt.Sprintf("{sni: [%s], group: %s}", name, group))
		groups = append(groups, fmt.Sprintf("%s: {backends: [\"%s\"], health: {probe: none}}", group, address))
	}
	p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", routes: [%s]}}
groups: {%s}
log: {format: json}
drain: {timeout: 1s}
`, strings.Join(routes, ", "), strings.Join(groups, ", ")))
	p.host, p.port = p.listening()
	return p
}

func startOpenSSL(t *testing.T, dir, name string, options ...string) (address string) {
	t.Helper()
	cert, key := certificate(t, dir, name)
	host, port := freeAddress(t)
	address = net.JoinHostPort(host, port)
	launch(t, syscall.SIGTERM, exec.Command("openssl", append([]string{"s_server", "-accept", address, "-cert", cert, "-key", key}, options...)...))
	eventually(t, soon, "s_server accepts", func() bool { return accepts(host, port) })
	return address
}

// visit makes openssl s_client ask for a page, and returns what it and the server say.
func (p *proxy) visit(name string, options ...string) (said string, err error) {
	p.t.Helper()
	args := append([]string{"s_client", "-connect", p.address(), "-servername", name, "-ign_eof"}, options...)
	cmd := exec.Command("openssl", args...)
	cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
	timer := time.AfterFunc(15*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestTLSPassesThroughByName(t *testing.T) {
	dir := t.TempDir()
	clientCert, clientKey := certificate(t, dir, "client.test")
	p := startRouted(t, map[string]string{
		"a.test":    startOpenSSL(t, dir, "a.test", "-www"),
		"b.test":    startOpenSSL(t, dir, "b.test", "-www"),
		"cert.test": startOpenSSL(t, dir, "cert.test", "-www", "-Verify", "1", "-verify_return_error", "-CAfile", clientCert),
	})
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for _, name := range []string{"a.test", "b.test"} {
			said, err := p.visit(name, version, "-verify_hostname", name, "-CAfile", filepath.Join(dir, name+".crt"), "-verify_return_error")
			if err != nil || !strings.Contains(said, "HTTP/1.0 200 ok") {
				t.Errorf("%s %s: %v\n%s", name, version, err, said)
			}
		}
		session := filepath.Join(dir, "session"+version)
		if said, err := p.visit("a.test", version, "-sess_out", session); err != nil || !strings.Contains(said, "New, TLSv") {
			t.Errorf("first session %s: %v\n%s", version, err, said)
		}
		if said, err := p.visit("a.test", version, "-sess_in", session); err != nil || !strings.Contains(said, "Reused, TLSv") {
			t.Errorf("resumption %s: %v\n%s", version, err, said)
		}
		if said, err := p.visit("cert.test", version, "-cert", clientCert, "-key", clientKey); err != nil || !strings.Contains(said, "HTTP/1.0 200 ok") {
			t.Errorf("client certificate %s: %v\n%s", version, err, said)
		}
		if said, _ := p.visit("cert.test", version); strings.Contains(said, "HTTP/1.0 200 ok") {
			t.Errorf("without a client certificate %s:\n%s", version, said)
		}
	}
	if said, err := p.visit("a.test", "-tls1_3", "-groups", "P-384:P-256"); err != nil || !strings.Contains(said, "HTTP/1.0 200 ok") {
		t.Errorf("other groups: %v\n%s", err, said)
	}
	if said, err := p.visit("other.test"); err == nil {
		t.Errorf("another name is served:\n%s", said)
	}
	eventually(t, soon, "the journal has the denied one", func() bool { return strings.Contains(p.log.String(), `"reason":"denied"`) })
	if !regexp.MustCompile(`"sni":"b\.test"`).MatchString(p.log.String()) {
		t.Error("the journal does not name b.test")
	}
}

// The server asks for a second hello (HelloRetryRequest): it has no group that the client sent a share for.
func TestHelloRetryAndEarlyDataPassThrough(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, "early.test")
	host, port := freeAddress(t)
	server := exec.Command("openssl", "s_server", "-accept", net.JoinHostPort(host, port), "-cert", cert, "-key", key, "-early_data", "-no_anti_replay", "-tls1_3")
	seen := &log{word: regexp.MustCompile("tokens of early data"), ready: make(chan struct{})}
	server.Stdout, server.Stderr = seen, seen
	in, err := server.StdinPipe() // it ends at the end of its input
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		server.Process.Kill()
		server.Wait()
	})
	eventually(t, soon, "s_server accepts", func() bool { return accepts(host, port) })
	p := startRouted(t, map[string]string{
		"early.test": net.JoinHostPort(host, port),
		"retry.test": startOpenSSL(t, dir, "retry.test", "-www", "-groups", "P-521"),
	})
	said, err := p.visit("retry.test", "-tls1_3", "-groups", "X25519:P-521", "-msg")
	if n := strings.Count(said, ", ClientHello"); err != nil || n != 2 || !strings.Contains(said, "HTTP/1.0 200 ok") {
		t.Errorf("with a second hello: %v, %d hellos\n%s", err, n, said)
	}

	session, data := filepath.Join(dir, "session"), filepath.Join(dir, "data")
	if err := os.WriteFile(data, []byte("tokens of early data\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// s_server never ends a connection by itself: Q ends s_client, when it has what it came for.
	quit := func(done func(said string) bool, options ...string) {
		t.Helper()
		cmd := exec.Command("openssl", append([]string{"s_client", "-connect", p.address(), "-servername", "early.test", "-tls1_3"}, options...)...)
		said := &log{ready: make(chan struct{})}
		cmd.Stdout, cmd.Stderr = said, said
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			io.WriteString(in, "Q\n")
			in.Close()
			defer time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() }).Stop()
			cmd.Wait()
			if t.Failed() {
				t.Logf("s_client %q:\n%s", options, said)
			}
		}()
		eventually(t, soon, fmt.Sprintf("s_client %q", options), func() bool { return done(said.String()) })
	}
	quit(func(string) bool { info, err := os.Stat(session); return err == nil && info.Size() > 0 }, "-sess_out", session)
	quit(func(said string) bool { return strings.Contains(said, "Early data was accepted") }, "-sess_in", session, "-early_data", data)
	select {
	case <-seen.ready:
	case <-time.After(5 * time.Second):
		t.Errorf("the early data did not arrive:\n%s", seen)
	}
}

func TestRedisOverTLSByName(t *testing.T) {
	server := need(t, "redis-server", "redis-server")
	cli := need(t, "redis-cli", "redis-tools")
	if help, _ := exec.Command(cli, "--help").CombinedOutput(); !strings.Contains(string(help), "--tls") {
		t.Skip("redis-cli was built without TLS")
	}
	dir := t.TempDir()
	cert, key := certificate(t, dir, "redis.test")
	host, port := freeAddress(t)
	launch(t, syscall.SIGTERM, exec.Command(server, "--bind", host, "--port", "0", "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-ca-cert-file", cert, "--tls-auth-clients", "no", "--save", "", "--appendonly", "no", "--dir", dir))
	eventually(t, soon, "Redis accepts", func() bool { return accepts(host, port) })
	p := startRouted(t, map[string]string{"redis.test": net.JoinHostPort(host, port)})
	ask := func(args ...string) string {
		return run(t, cli, append([]string{"-h", p.host, "-p", p.port, "--tls", "--sni", "redis.test", "--cacert", cert}, args...)...)
	}
	value := strings.Repeat("value ", 1000)
	if got := ask("set", "key", value); got != "OK\n" {
		t.Errorf("SET is answered by %q", got)
	}
	if got := ask("get", "key"); got != value+"\n" {
		t.Errorf("GET is answered by %d bytes, not %d", len(got), len(value)+1)
	}
}

// A client that sends its hello byte by byte costs what it takes to count the bytes, however many have come.
func TestSlowHelloCostsLittle(t *testing.T) {
	p := startRouted(t, map[string]string{"a.test": startTeller(t)})
	c, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	const pieces = 2000
	if _, err := c.Write([]byte("\x16\x03\x01\x3f\x00\x01\x00\x3e\xfc\x03\x03")); err != nil {
		t.Fatal(err)
	}
	before := p.ran()
	pause := time.NewTicker(500 * time.Microsecond)
	defer pause.Stop()
	for i := range pieces {
		if _, err := c.Write([]byte{0}); err != nil {
			t.Fatalf("after %d bytes: %v", i, err)
		}
		<-pause.C
	}
	used := p.ran() - before
	t.Logf("%d bytes one by one cost the proxy %v", pieces, used)
	if used > pieces*100*time.Microsecond {
		t.Error("that is more than counting them")
	}
}

// ran is the CPU time of the process's threads, as the scheduler has it.
func (p *proxy) ran() (total time.Duration) {
	p.t.Helper()
	tasks, err := filepath.Glob(p.proc("task", "*", "schedstat"))
	if err != nil || len(tasks) == 0 {
		p.t.Skipf("this kernel keeps no schedstat: %v", err)
	}
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		var ns int64
		if _, err := fmt.Sscan(string(stat), &ns); err != nil {
			p.t.Fatal(err)
		}
		total += time.Duration(ns)
	}
	return total
}
