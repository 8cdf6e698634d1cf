//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestPostgreSQLClients(t *testing.T) {
	server := startPostgreSQL(t)
	host, port, err := net.SplitHostPort(server.address)
	if err != nil {
		t.Fatal(err)
	}
	psql := need(t, "psql", "postgresql-client")
	pgbench := need(t, "/usr/lib/postgresql/*/bin/pgbench", "postgresql")
	p := startProxy(t, 1024, net.JoinHostPort(host, port))
	args := func(a ...string) []string {
		return append([]string{"-h", p.host, "-p", p.port, "-U", "postgres"}, a...)
	}

	const query = "select md5(g::text) from generate_series(1, 300000) g" // 10 MB
	direct := run(t, psql, "-h", host, "-p", port, "-U", "postgres", "-Atc", query)
	if got := run(t, psql, args("-Atc", query)...); got != direct {
		t.Errorf("a result of %d bytes has %d bytes through tproxy, or others", len(direct), len(got))
	}
	run(t, pgbench, args("-q", "-i", "-s", "1", "postgres")...)
	for _, tt := range []struct {
		name    string
		options []string
		want    string
	}{
		{"steady", []string{"-c", "8", "-j", "2", "-t", "100"}, "800/800"},
		{"prepared", []string{"-c", "8", "-M", "prepared", "-S", "-t", "500"}, "4000/4000"},
		{"connect each time", []string{"-c", "4", "-C", "-t", "25"}, "100/100"},
	} {
		if out := run(t, pgbench, args(append(tt.options, "-n", "postgres")...)...); !strings.Contains(out, tt.want) {
			t.Errorf("pgbench, %s: %s transactions were wanted:\n%s", tt.name, tt.want, out)
		}
	}
	eventually(t, soon, "no session is left", func() bool { return p.metric("tproxy_sessions_active", "") == 0 })
}

func TestRedisBenchmark(t *testing.T) {
	benchmark := need(t, "redis-benchmark", "redis-tools")
	host, port := startRedis(t)
	p := startProxy(t, 1024, net.JoinHostPort(host, port))
	for _, options := range [][]string{
		{"-n", "20000", "-t", "set,get"},
		{"-n", "50000", "-t", "set,get", "-P", "16"},
		{"-n", "2000", "-t", "set,get", "-d", "100000"},
		{"-n", "2000", "-t", "set", "-k", "0"}, // a connection for each request
	} {
		out := run(t, benchmark, append([]string{"-h", p.host, "-p", p.port, "-q", "-e"}, options...)...)
		if n := strings.Count(out, "requests per second"); n != 1+strings.Count(strings.Join(options, " "), ",") {
			t.Errorf("redis-benchmark %q:\n%s", options, out)
		}
	}
	cli := need(t, "redis-cli", "redis-tools")
	for _, address := range [][2]string{{p.host, p.port}, {host, port}} {
		run(t, cli, "-h", address[0], "-p", address[1], "config", "resetstat")
		if got := run(t, cli, "-h", address[0], "-p", address[1], "ping"); got != "PONG\n" {
			t.Errorf("PING is answered by %q", got)
		}
	}
}

func startRedis(t *testing.T) (host, port string) {
	t.Helper()
	server := need(t, "redis-server", "redis-server")
	host, port = freeAddress(t)
	launch(t, syscall.SIGTERM, exec.Command(server, "--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir()))
	eventually(t, soon, "Redis accepts", func() bool { return accepts(host, port) })
	return host, port
}

func TestDownloadHasEqualHash(t *testing.T) {
	nginx := need(t, "nginx", "nginx")
	curl := need(t, "curl", "curl")
	size := int64(1 << 30)
	if testing.Short() {
		size = 256 << 20
	}
	dir := t.TempDir()
	want := writeFile(t, filepath.Join(dir, "file"), size)
	host, port := freeAddress(t)
	config := filepath.Join(dir, "nginx.conf")
	as := ""
	if os.Getuid() == 0 {
		as = "user root;"
	}
	err := os.WriteFile(config, fmt.Appendf(nil, `%s
daemon off;
master_process off;
pid %[2]s/pid;
error_log %[2]s/error.log;
events {}
http {
	access_log off;
	client_body_temp_path %[2]s; proxy_temp_path %[2]s; fastcgi_temp_path %[2]s; uwsgi_temp_path %[2]s; scgi_temp_path %[2]s;
	server { listen %[3]s:%[4]s; root %[2]s; sendfile on; }
}
`, as, dir, host, port), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	launch(t, syscall.SIGTERM, exec.Command(nginx, "-c", config, "-p", dir, "-e", filepath.Join(dir, "error.log")))
	eventually(t, soon, "nginx accepts", func() bool { return accepts(host, port) })
	p := startProxy(t, 1024, net.JoinHostPort(host, port))

	got := &counter{Hash: sha256.New()}
	cmd := exec.Command(curl, "-sS", "--fail", "--max-time", "120", "http://"+p.address()+"/file")
	cmd.Stdout, cmd.Stderr = got, os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("curl: %v", err)
	}
	if sum := got.Sum(nil); got.n != size || string(sum) != string(want) {
		t.Errorf("a file of %d bytes, SHA-256 %x, arrived as %d bytes, %x", size, want, got.n, sum)
	}
}

type counter struct {
	hash.Hash
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return c.Hash.Write(b)
}

// writeFile makes a sparse file with 4 KiB of random bytes at a random place in each MiB, and returns its SHA-256.
func writeFile(t *testing.T, name string, size int64) []byte {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	source := rand.NewChaCha8([32]byte{1})
	random := rand.New(source)
	block := make([]byte, 4<<10)
	for at := int64(0); at < size; at += 1 << 20 {
		source.Read(block)
		if _, err := f.WriteAt(block, at+random.Int64N(1<<20-int64(len(block)))); err != nil {
			t.Fatal(err)
		}
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return sum.Sum(nil)
}

func TestIperf3(t *testing.T) {
	iperf3 := need(t, "iperf3", "iperf3")
	host, port := freeAddress(t)
	launch(t, syscall.SIGTERM, exec.Command(iperf3, "-s", "-B", host, "-p", port))
	eventually(t, soon, "iperf3 accepts", func() bool { return accepts(host, port) })
	p := startProxy(t, 1024, net.JoinHostPort(host, port))
	const bytes = 400 << 20
	for name, options := range map[string][]string{"up": {"-P", "4"}, "down": {"-P", "4", "-R"}, "one stream": {}} {
		var result struct {
			Error string
			End   struct {
				Sent     struct{ Bytes int64 } `json:"sum_sent"`
				Received struct{ Bytes int64 } `json:"sum_received"`
			}
		}
		// The server serves one test at a time, and ends the last one a moment after its client.
		eventually(t, soon, "the server is free", func() bool {
			out := run(t, iperf3, append([]string{"-c", p.host, "-p", p.port, "-n", strconv.Itoa(bytes), "-J"}, options...)...)
			result.Error = ""
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, out)
			}
			return !strings.Contains(result.Error, "the server is busy")
		})
		// iperf3 ends a test when all is sent: what is then on the way is not in its count of received bytes.
		if r := result.End; result.Error != "" || r.Sent.Bytes < bytes || r.Received.Bytes < bytes/2 {
			t.Errorf("%s: sent %d, received %d of %d bytes: %s", name, r.Sent.Bytes, r.Received.Bytes, int64(bytes), result.Error)
		}
	}
}
