package clienthello

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func peek(t *testing.T, b []byte) Hello {
	t.Helper()
	h, n, err := Peek(b)
	if err != nil || n > len(b) {
		t.Fatalf("%+v, %d of %d bytes, %v", h, n, len(b), err)
	}
	return h
}

func equal(a, b Hello) bool { return a.ServerName == b.ServerName && slices.Equal(a.ALPN, b.ALPN) }

// clients are configurations of crypto/tls, and what their hello says.
func clients(t testing.TB) map[string]struct {
	config *tls.Config
	want   Hello
} {
	type client = struct {
		config *tls.Config
		want   Hello
	}
	all := map[string]client{
		"no name": {&tls.Config{InsecureSkipVerify: true}, Hello{}},
		"ECH": {&tls.Config{ServerName: "secret.example", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfig(t, "public.example")},
			Hello{ServerName: "public.example"}},
		"classic key share":                          {&tls.Config{ServerName: "a.example", CurvePreferences: []tls.CurveID{tls.CurveP256}}, Hello{ServerName: "a.example"}},
		"IP address, which no client sends":          {&tls.Config{ServerName: "192.0.2.1"}, Hello{}},
		"dot at the end, which crypto/tls takes off": {&tls.Config{ServerName: "a.example."}, Hello{ServerName: "a.example"}},
		"upper case":        {&tls.Config{ServerName: "WWW.Example.COM"}, Hello{ServerName: "www.example.com"}},
		"long name":         {&tls.Config{ServerName: strings.Repeat("a.", 126) + "b"}, Hello{ServerName: strings.Repeat("a.", 126) + "b"}},
		"many protocols":    {&tls.Config{ServerName: "a", NextProtos: strings.Fields(strings.Repeat("h2 http/1.1 ", 500))}, Hello{"a", strings.Fields(strings.Repeat("h2 http/1.1 ", 500))}},
		"GREASE protocol":   {&tls.Config{ServerName: "a", NextProtos: []string{"\x0a\x0a", "h2"}}, Hello{"a", []string{"\x0a\x0a", "h2"}}},
		"session ticket ok": {&tls.Config{ServerName: "a", ClientSessionCache: tls.NewLRUClientSessionCache(1)}, Hello{ServerName: "a"}},
	}
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		for _, alpn := range [][]string{nil, {"h2"}, {"h2", "http/1.1"}} {
			name := fmt.Sprintf("%s %v", tls.VersionName(version), alpn)
			all[name] = client{&tls.Config{ServerName: "foo.example", MinVersion: tls.VersionTLS10, MaxVersion: version, NextProtos: alpn}, Hello{"foo.example", alpn}}
		}
	}
	return all
}

func TestHellosOfCryptoTLSClients(t *testing.T) {
	for name, c := range clients(t) {
		b := sent(t, c.config)
		h, n, err := Peek(append(b[:len(b):len(b)], "early data"...))
		if !equal(h, c.want) || n != len(b) || err != nil {
			t.Errorf("%s: %+v, %d, %v; want %+v, %d", name, h, n, err, c.want, len(b))
		}
		if s := served(b); s == nil || !equal(h, Hello{fold(s.ServerName), s.SupportedProtos}) {
			t.Errorf("%s: %+v, crypto/tls: %+v", name, h, s)
		}
	}
}

// hellos for the tests that cut: small, of a browser's size, over one record.
func hellos(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"small":        crafted{name: "foo.example", alpn: []string{"h2"}}.bytes(),
		"post-quantum": sent(t, &tls.Config{ServerName: "foo.example", NextProtos: []string{"h2"}}),
		"padded":       crafted{name: "foo.example", alpn: []string{"h2"}, padding: 14_500}.bytes(),
		"two records":  crafted{name: "foo.example", alpn: []string{"h2"}, padding: 20_000}.bytes(),
		"tiny records": records(crafted{name: "foo.example", alpn: []string{"h2"}}.message(), upTo(200)...),
	}
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func TestHelloCutAnywhereIsIncomplete(t *testing.T) {
	for name, b := range hellos(t) {
		asked := 0
		for cut := range len(b) {
			h, n, err := Peek(b[:cut])
			if err != ErrIncomplete || n <= cut || n > len(b) || n < asked || !equal(h, Hello{}) {
				t.Fatalf("%s cut at %d: %+v, %d, %v; asked for %d before", name, cut, h, n, err, asked)
			}
			asked = n
		}
		if h := peek(t, b); !equal(h, Hello{"foo.example", []string{"h2"}}) {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestHelloSplitIntoRecordsAnywhere(t *testing.T) {
	want := Hello{"foo.example", []string{"h2"}}
	for _, c := range []crafted{{name: "foo.example", alpn: []string{"h2"}}, {name: "foo.example", alpn: []string{"h2"}, padding: 1500}} {
		m := c.message()
		for i := 1; i < len(m); i++ {
			b := records(m, i)
			if h, n, err := Peek(b); !equal(h, want) || n != len(b) || err != nil {
				t.Fatalf("split at %d: %+v, %d, %v", i, h, n, err)
			}
			for _, cut := range []int{recordHead + i - 1, recordHead + i, recordHead + i + 1, 2*recordHead + i, len(b) - 1} {
				if _, n, err := Peek(b[:cut]); err != ErrIncomplete || n <= cut || n > len(b) {
					t.Fatalf("split at %d, cut at %d: %d, %v", i, cut, n, err)
				}
			}
			if s := served(b); s == nil || s.ServerName != want.ServerName {
				t.Fatalf("split at %d: crypto/tls takes it for %+v", i, s)
			}
		}
		if h := peek(t, records(m, upTo(len(m))...)); !equal(h, want) {
			t.Errorf("records of one byte: %+v", h)
		}
	}
}

// Against a client that spreads its hello over as many records as it can, a reader that waits for what Peek asks for
// still looks a few times only.
func TestFewLooksAtManyRecords(t *testing.T) {
	m := crafted{name: "foo.example", padding: 10_000}.message()
	b := records(m, upTo(len(m))...)
	looks, n := 0, 0
	for err := error(ErrIncomplete); err == ErrIncomplete; looks++ {
		_, n, err = Peek(b[:n])
	}
	if n != len(b) || looks > 100 {
		t.Errorf("%d looks at %d of %d bytes", looks, n, len(b))
	}
}

func TestOtherProtocolsAreRecognizedAtOnce(t *testing.T) {
	for name, b := range map[string]string{
		"SSH":                "S",
		"HTTP":               "G",
		"SSL 2.0 hello":      "\x80",
		"long SSL 2.0 hello": "\x00",
		"TLS alert":          "\x15",
		"PostgreSQL":         "\x00\x00\x00\x08\x04\xd2\x16\x2f",
		"DTLS":               "\x16\xfe",
		"a 0x16":             "\x16\x16",
	} {
		for _, more := range []string{"", strings.Repeat("\x16\x03", 100)} {
			if h, n, err := Peek([]byte(b + more)); err != ErrNotTLS || n != 0 || !equal(h, Hello{}) {
				t.Errorf("%s: %+v, %d, %v", name, h, n, err)
			}
		}
	}
}

func TestMalformedHellosAreRefused(t *testing.T) {
	good := crafted{name: "foo.example"}.message()
	change := func(at int, to ...byte) string {
		b := bytes.Clone(good)
		copy(b[at:], to)
		return string(records(b))
	}
	extensions := func(raw string) string { return string(crafted{extensions: raw}.bytes()) }
	listAt := bytes.Index(good, []byte("foo.example")) - 9 // of the server_name extension
	for name, b := range map[string]string{
		"record of length 0":               "\x16\x03\x01\x00\x00",
		"record of length 16385":           "\x16\x03\x01\x40\x01",
		"record of length 0xffff":          "\x16\x03\x01\xff\xff",
		"another handshake message":        "\x16\x03\x01\x00\x04\x02",
		"hello request":                    "\x16\x03\x01\x00\x04\x00",
		"message of 16 MB":                 "\x16\x03\x01\x40\x00\x01\xff\xff\xff",
		"message of 64 KiB":                "\x16\x03\x01\x40\x00\x01\x01\x00\x00",
		"empty message":                    "\x16\x03\x01\x00\x04\x01\x00\x00\x00",
		"message without a random":         "\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
		"an alert inside":                  string(records(good, 50)[:recordHead+50]) + "\x15\x03\x01\x00\x02\x01\x00",
		"another version inside":           string(records(good, 50)[:recordHead+50]) + "\x16\x02\x01\x00\x02\x01\x00",
		"an empty record inside":           string(records(good, 50)[:recordHead+50]) + "\x16\x03\x01\x00\x00",
		"shorter message":                  change(3, byte(len(good)-5)),
		"session id over the end":          change(38, 0xff),
		"suites over the end":              change(71, 0xff, 0xff),
		"compression over the end":         change(75, 0xff),
		"extensions shorter":               change(77, 0, 1),
		"extensions longer":                change(77, 0xff, 0xff),
		"extension over the end":           change(listAt+2, 0xff, 0xff),
		"name list over the end":           change(listAt+4, 0xff, 0xff),
		"name list shorter":                change(listAt+4, 0, 4),
		"name over the end":                change(listAt+7, 0xff, 0xff),
		"name shorter":                     change(listAt+7, 0, 3),
		"empty server_name":                extensions(extension(0, "")),
		"empty name list":                  extensions(serverNames()),
		"empty name":                       extensions(serverNames(hostName(""))),
		"two host names":                   extensions(serverNames(hostName("a"), hostName("b"))),
		"bytes after the name list":        extensions(extension(0, "\x00\x04\x00\x00\x01ax")),
		"two server_name extensions":       extensions(serverNames(hostName("a")) + serverNames(hostName("a"))),
		"two ALPN extensions":              extensions(protocols("\x01a") + protocols("\x01a")),
		"empty ALPN":                       extensions(extension(16, "")),
		"no ALPN protocol":                 extensions(protocols("")),
		"empty ALPN protocol":              extensions(protocols("\x00")),
		"ALPN protocol over the end":       extensions(protocols("\x03h2")),
		"bytes after the ALPN protocols":   extensions(extension(16, "\x00\x02\x01ax")),
		"one stray byte in the extensions": extensions("\x00"),
	} {
		h, n, err := Peek([]byte(b))
		if !errors.Is(err, ErrMalformed) || n != 0 || !equal(h, Hello{}) {
			t.Errorf("%s: %+v, %d, %v", name, h, n, err)
		}
		if s := served([]byte(b)); s != nil {
			t.Errorf("%s: crypto/tls takes it for %+v", name, s)
		}
		if more, _, err := Peek([]byte(b + strings.Repeat("\x00", 70_000))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s, and more bytes: %+v, %v", name, more, err)
		}
	}
}

func TestServerNames(t *testing.T) {
	for _, tt := range []struct {
		sent, want string // "" malformed
	}{
		{"foo.example", "foo.example"},
		{"FOO.Example", "foo.example"},
		{"foo.example.", "foo.example"},
		{"_service.foo.example", "_service.foo.example"},
		{"xn--mnchen-3ya.example", "xn--mnchen-3ya.example"},
		{"192.0.2.1", "192.0.2.1"},
		{"a", "a"},
		{`{"reason":"fake"}`, `{"reason":"fake"}`},
		{strings.Repeat("x", 255), strings.Repeat("x", 255)},
		{strings.Repeat("x", 255) + ".", strings.Repeat("x", 255)},

		{strings.Repeat("x", 256), ""},
		{strings.Repeat("x", 4000), ""},
		{".", ""},
		{"a\x00b", ""},
		{"foo.example\x00.other.example", ""},
		{"foo.example\x00", ""},
		{"a\nb.example", ""},
		{"\r\n{}", ""},
		{"\x1b[31mred", ""},
		{"a b", ""},
		{"a\x7f", ""},
		{"münchen.example", ""},
		{"\xff\xfe\xc0", ""},
	} {
		h, _, err := Peek(crafted{name: tt.sent}.bytes())
		if h.ServerName != tt.want || (err == nil) != (tt.want != "") || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %q, %v; want %q", tt.sent, h.ServerName, err, tt.want)
		}
		if err != nil && strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' && r != 'ü' }) {
			t.Errorf("%q: the error holds its bytes: %v", tt.sent, err)
		}
	}
}

func TestNamesOfOtherTypesAreSkipped(t *testing.T) {
	b := crafted{extensions: serverNames(serverName(7, "\x00\n"), hostName("foo.example"))}.bytes()
	if h := peek(t, b); h.ServerName != "foo.example" {
		t.Errorf("%+v", h)
	}
	b = crafted{extensions: serverNames(serverName(7, "foo.example"))}.bytes()
	if h := peek(t, b); h.ServerName != "" {
		t.Errorf("%+v", h)
	}
}

func TestHelloWithoutExtensions(t *testing.T) {
	body := append([]byte{3, 1}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0, 0x2f, 1, 0)
	b := records(handshake(clientHello, body))
	if h := peek(t, b); !equal(h, Hello{}) {
		t.Errorf("%+v", h)
	}
	if served(b) == nil {
		t.Error("crypto/tls does not take it")
	}
}

func TestGreaseIsSkipped(t *testing.T) {
	b := crafted{name: "foo.example", alpn: []string{"\x0a\x0a", "h2"}, extensions: extension(0x0a0a, "") + extension(0xfafa, "\x00")}.bytes()
	if h := peek(t, b); !equal(h, Hello{"foo.example", []string{"\x0a\x0a", "h2"}}) {
		t.Errorf("%+v", h)
	}
}

func TestSizeOfAHello(t *testing.T) {
	overhead := len(crafted{name: "a", padding: 1}.message()) - 1
	largest := MaxSize - 4*recordHead - overhead // in four records
	if h := peek(t, crafted{name: "a", padding: largest}.bytes()); h.ServerName != "a" {
		t.Errorf("%+v", h)
	}
	b := crafted{name: "a", padding: largest + 1}.bytes()
	if _, _, err := Peek(b[:recordHead+messageHead]); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte too long: %v from the head of the message", err)
	}
	if _, _, err := Peek(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("a byte too long: %v", err)
	}

	m := crafted{name: "a", padding: 30_000}.message()
	b = records(m, upTo(len(m))...) // six bytes for each of the message
	for _, b := range [][]byte{b[:MaxSize-7], b[:MaxSize], b} {
		if _, n, err := Peek(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes of tiny records: %d, %v", len(b), n, err)
		}
	}
}

func TestPeekKeepsNoPartOfTheBuffer(t *testing.T) {
	b := crafted{name: "foo.example", alpn: []string{"h2"}}.bytes()
	h := peek(t, b)
	clear(b)
	if !equal(h, Hello{"foo.example", []string{"h2"}}) {
		t.Errorf("%+v", h)
	}
}

func FuzzPeek(f *testing.F) {
	for _, b := range hellos(f) {
		f.Add(b)
	}
	for _, c := range clients(f) {
		f.Add(sent(f, c.config))
	}
	f.Add([]byte("\x16\x03\x01\xff\xff"))
	f.Add([]byte("\x80\x2e\x01\x03\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Peek(b)
		switch {
		case err == ErrIncomplete:
			if n <= len(b) || n > MaxSize {
				t.Fatalf("%d bytes of %d: incomplete", n, len(b))
			}
		case err != nil:
			if n != 0 || !equal(h, Hello{}) || err != ErrNotTLS && !errors.Is(err, ErrMalformed) {
				t.Fatalf("%+v, %d, %v", h, n, err)
			}
		case n > len(b) || n > MaxSize:
			t.Fatalf("%d bytes of %d", n, len(b))
		default:
			if short, _, err := Peek(b[:n-1]); err != ErrIncomplete {
				t.Fatalf("one byte less: %+v, %v", short, err)
			}
			if h.ServerName != "" && !printable(h.ServerName) {
				t.Fatalf("name %q", h.ServerName)
			}
		}
	})
}

// A message in records cut anywhere: what crypto/tls takes for a hello is one with the same name and protocols here, but
// for names that are refused on purpose.
func FuzzAgreesWithCryptoTLS(f *testing.F) {
	for _, b := range hellos(f) {
		message, _, err := message(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(message, uint16(0), uint16(0))
		f.Add(message, uint16(3), uint16(77))
	}
	for _, c := range clients(f) {
		f.Add(sent(f, c.config)[recordHead:], uint16(1), uint16(2))
	}
	for _, raw := range []string{serverNames(hostName("a"), serverName(1, "b")), protocols("\x02h2\x02\x0a\x0a"), extension(0, "\x00\x01\x00"), protocols("\x00")} {
		f.Add(crafted{extensions: raw}.message(), uint16(5), uint16(5))
	}
	f.Fuzz(func(t *testing.T, message []byte, cut1, cut2 uint16) {
		b := records(message, int(cut1), int(cut2))
		h, _, err := Peek(b)
		if uncut, _, err2 := Peek(records(message)); !reflect.DeepEqual(h, uncut) || (err == nil) != (err2 == nil) && len(b) <= MaxSize {
			t.Fatalf("cut: %+v, %v; uncut: %+v, %v", h, err, uncut, err2)
		}
		s := served(b)
		switch {
		case s == nil:
		case err == nil:
			if !equal(h, Hello{fold(s.ServerName), s.SupportedProtos}) {
				t.Fatalf("%+v, crypto/tls: %+v", h, s)
			}
		case (s.ServerName == "" || printable(fold(s.ServerName))) && len(b) <= MaxSize:
			t.Fatalf("%v, crypto/tls: %+v", err, s)
		}
	})
}

func BenchmarkPeek(b *testing.B) {
	for name, bytes := range hellos(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Peek(bytes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
