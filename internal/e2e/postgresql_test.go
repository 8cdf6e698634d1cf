//go:build linux

package e2e

import (
	"bufio"
	order "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A postgreSQL is a running server.
type postgreSQL struct {
	address string
	log     *log
}

// startPostgreSQL runs a new PostgreSQL cluster, as user postgres or nobody where this is root, which PostgreSQL refuses to be.
func startPostgreSQL(t *testing.T, settings ...string) postgreSQL {
	t.Helper()
	initdb := need(t, "/usr/lib/postgresql/*/bin/initdb", "postgresql")
	dir, err := os.MkdirTemp("", "tproxy-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := func(cmd *exec.Cmd) *exec.Cmd { return cmd }
	if os.Getuid() == 0 {
		who, err := user.Lookup("postgres")
		if err != nil {
			who, err = user.Lookup("nobody")
		}
		if err != nil {
			t.Fatal(err)
		}
		uid, err1 := strconv.ParseUint(who.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(who.Gid, 10, 32)
		if err1 != nil || err2 != nil {
			t.Fatalf("ids of %s: %s, %s", who.Username, who.Uid, who.Gid)
		}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
		as = func(cmd *exec.Cmd) *exec.Cmd {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
			cmd.Dir = dir
			return cmd
		}
	}
	data := filepath.Join(dir, "data")
	if out, err := as(exec.Command(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions")).CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	host, port := freeAddress(t)
	postgres := filepath.Join(filepath.Dir(initdb), "postgres")
	args := []string{"-D", data, "-h", host, "-p", port, "-k", "", "-c", "fsync=off"}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	log := launch(t, syscall.SIGINT, as(exec.Command(postgres, args...)))
	ready := filepath.Join(filepath.Dir(initdb), "pg_isready")
	eventually(t, soon, "PostgreSQL accepts", func() bool { return exec.Command(ready, "-q", "-h", host, "-p", port).Run() == nil })
	return postgreSQL{net.JoinHostPort(host, port), log}
}

// A postgresClient speaks as much of PostgreSQL's protocol, version 3, as a session with trusted users needs.
type postgresClient struct {
	conn      net.Conn
	in        *bufio.Reader
	sent, got *atomic.Int64
}

func newPostgresClient(conn net.Conn, sent, got *atomic.Int64) *postgresClient {
	p := &postgresClient{conn: conn, sent: sent, got: got}
	p.in = bufio.NewReader(p)
	return p
}

// Read counts. The end of the stream is an error unless PostgreSQL was asked for it.
func (p *postgresClient) Read(b []byte) (int, error) {
	n, err := p.conn.Read(b)
	p.got.Add(int64(n))
	return n, err
}

// send sends a message; only the first has no kind.
func (p *postgresClient) send(kind string, body string) error {
	m := order.BigEndian.AppendUint32([]byte(kind), uint32(4+len(body)))
	n, err := p.conn.Write(append(m, body...))
	p.sent.Add(int64(n))
	return err
}

// answer reads until the server is ready for a query, and returns the first value of each row.
func (p *postgresClient) answer() (values []string, err error) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(p.in, head[:]); err != nil {
			return nil, unfinished(err)
		}
		body := make([]byte, order.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(p.in, body); err != nil {
			return nil, unfinished(err)
		}
		switch head[0] {
		case 'D': // number of values, length of the first; -1 is NULL
			value := "NULL"
			if n := int32(order.BigEndian.Uint32(body[2:])); n >= 0 {
				value = string(body[6 : 6+n])
			}
			values = append(values, value)
		case 'E':
			return nil, fmt.Errorf("PostgreSQL says %q", body)
		case 'Z':
			return values, nil
		}
	}
}

func unfinished(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errShort
	}
	return err
}

func (p *postgresClient) login() error {
	if err := p.send("", "\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"); err != nil {
		return err
	}
	_, err := p.answer()
	return err
}

// query returns the first value of the last row.
func (p *postgresClient) query(sql string) (string, error) {
	if err := p.send("Q", sql+"\x00"); err != nil {
		return "", err
	}
	values, err := p.answer()
	if err != nil || len(values) == 0 {
		return "", err
	}
	return values[len(values)-1], nil
}

// end asks for the end of the session and waits for it.
func (p *postgresClient) end() error {
	if err := p.send("X", ""); err != nil {
		return err
	}
	b, err := io.ReadAll(p.in)
	if err == nil && len(b) > 0 {
		err = fmt.Errorf("%d bytes after the end of the session", len(b))
	}
	return err
}

// visit logs in, leaves a setting behind that nobody may have left before, gets a result that depends on it, and ends.
func (p *postgresClient) visit(name string) error {
	if err := p.login(); err != nil {
		return err
	}
	for _, x := range []struct{ sql, want string }{
		{"select current_setting('witness.name', true)", "NULL"},
		{"set witness.name = '" + name + "'", ""},
		{"select repeat(current_setting('witness.name'), 1000)", strings.Repeat(name, 1000)},
	} {
		got, err := p.query(x.sql)
		if err != nil {
			return err
		}
		if got != x.want {
			return fmt.Errorf("%s is answered by %.40q", x.sql, got)
		}
	}
	return p.end()
}

// PostgreSQL ends a connection on which nobody has logged in for a while. Spares are younger than that: clients that come at whatever
// moment log in on their first try.
func TestWarmPostgreSQLConnectionsAreYoungerThanItsLoginTimeout(t *testing.T) {
	const timeout, warm = 3 * time.Second, 3
	server := startPostgreSQL(t, "authentication_timeout=3s", "log_min_messages=debug2", "autovacuum=off")
	said := func(what string) int { return strings.Count(server.log.String(), what) }
	eventually(t, soon, "those who asked whether PostgreSQL is ready have gone", func() bool {
		return said("forked new backend") == said("server process (PID")
	})
	// PostgreSQL ends such a connection without a message, and its main process then tells of an exit code 1.
	const failed = "exited with exit code 1"
	before := said(failed)
	timeouts := func() int { return said(failed) - before }

	p := runProxy(t, 1024, fmt.Sprintf(`
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%q], pool: {warm: %d, max_age: 1500ms, refill_rate: 0}}}
log: {format: json, sessions: {close: false}}
drain: {timeout: 1s}
`, server.address, warm))
	address := p.status().Listeners[0].Addresses[0]
	full := func() bool { return p.metric("tproxy_pool_spares", "") == warm }
	eventually(t, soon, "the spares are there", full)
	var visits sync.WaitGroup
	visits.Go(func() { // the timeout is in force
		idle, err := net.Dial("tcp", server.address)
		if err != nil {
			t.Error(err)
			return
		}
		defer idle.Close()
		idle.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := idle.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("PostgreSQL does not end a silent connection: %v", err)
		}
	})
	// Few come, each time as many as there are spares, so that spares of every age are taken.
	const moments, periods = 8, 3
	for n := range moments {
		after := time.Duration(rand.Int64N(int64(periods * timeout)))
		for k := range warm {
			visits.Go(func() {
				<-time.After(after)
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				var sent, got atomic.Int64
				if err := newPostgresClient(conn, &sent, &got).visit(fmt.Sprintf("client %d-%d", n, k)); err != nil {
					t.Errorf("a client after %v: %v", after, err)
				}
			})
		}
	}
	visits.Wait()
	hits := p.metric("tproxy_pool_gets_total", `result="hit"`)
	if t.Logf("%v of %d clients had a spare", hits, moments*warm); hits < moments {
		t.Error("too few")
	}
	// And spares that nobody takes.
	end := time.Now().Add(timeout + 500*time.Millisecond)
	eventually(t, soon, "the spares are there after one more period", func() bool { return time.Now().After(end) && full() })
	if n := timeouts(); n != 1 {
		t.Errorf("PostgreSQL ended %d connections because nobody logged in, where it should be the one that is not a spare", n)
	}
}

// The default of max_age is below the default login timeout of PostgreSQL.
func TestDefaultMaxAgeSuitsPostgreSQL(t *testing.T) {
	server := startPostgreSQL(t)
	conn, err := net.Dial("tcp", server.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	var sent, got atomic.Int64
	pg := newPostgresClient(conn, &sent, &got)
	if err := pg.login(); err != nil {
		t.Fatal(err)
	}
	text, err := pg.query("select setting from pg_settings where name = 'authentication_timeout'")
	if err != nil {
		t.Fatal(err)
	}
	timeout, err := time.ParseDuration(text + "s")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tproxy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, `
listeners: {main: {address: "127.0.0.1:0", group: main}}
groups: {main: {backends: [%q], pool: {warm: 1}}}
`, server.address), 0o600); err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(run(t, binary, "check", "-c", file, "--dump"), "max_age:")
	if !found {
		t.Fatal("check --dump knows no max_age")
	}
	maxAge, err := time.ParseDuration(strings.Trim(strings.Fields(rest)[0], `",}`))
	if err != nil {
		t.Fatal(err)
	}
	if maxAge <= 0 || maxAge >= timeout {
		t.Errorf("the default of max_age is %v, PostgreSQL ends silent connections after %v", maxAge, timeout)
	}
	if err := pg.end(); err != nil {
		t.Fatal(err)
	}
}
