package config

import "testing"

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]Address{
		"10.0.0.1:5432":    {Host: "10.0.0.1", Port: 5432},
		":8080":            {Port: 8080},
		"[::]:0":           {Host: "::"},
		"[::1]:80":         {Host: "::1", Port: 80},
		"[fe80::1%eth0]:1": {Host: "fe80::1%eth0", Port: 1},
		"db-1.x_y.org.:1":  {Host: "db-1.x_y.org.", Port: 1},
		"localhost:65535":  {Host: "localhost", Port: 65535},
		"unix:/run/x.sock": {Path: "/run/x.sock"},
		"unix:@abstract":   {Path: "@abstract"},
		"fd:web":           {FD: "web"},
	} {
		got, err := ParseAddress(in)
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", in, got, err, want)
		}
		if got.String() != in {
			t.Errorf("%q is printed as %q", in, got.String())
		}
	}
	for in, want := range map[string]string{
		"":                       `no address in "" (host:port, [v6]:port, :port, unix:/path or fd:NAME)`,
		"x":                      `no port in "x" (host:port)`,
		"x:":                     `no port in "x:" (host:port)`,
		"[::1]":                  `no port in "[::1]" (host:port)`,
		"::1:80":                 `an IPv6 address without brackets in "::1:80" ([v6]:port)`,
		"x:http":                 `the port is not a number in "x:http" (0 to 65535)`,
		"x:-1":                   `the port is not a number in "x:-1" (0 to 65535)`,
		"x:65536":                `port out of range in "x:65536" (0 to 65535)`,
		"x:99999999999999999999": `port out of range in "x:99999999999999999999" (0 to 65535)`,
		"300.1.1.1:1":            `not a host name or an IP address in "300.1.1.1:1" (letters, digits, - and _ between dots, or four numbers up to 255)`,
		"a..b:1":                 `not a host name or an IP address in "a..b:1" (letters, digits, - and _ between dots, or four numbers up to 255)`,
		"-a:1":                   `not a host name or an IP address in "-a:1" (letters, digits, - and _ between dots, or four numbers up to 255)`,
		"a b:1":                  `not a host name or an IP address in "a b:1" (letters, digits, - and _ between dots, or four numbers up to 255)`,
		"[10.0.0.1]:1":           `not an IPv6 address in "[10.0.0.1]:1" ([v6]:port)`,
		"[x]:1":                  `not an IPv6 address in "[x]:1" ([v6]:port)`,
		"unix:":                  `no path in "unix:" (unix:/path)`,
		"fd:":                    `not the name of a descriptor: "fd:" (fd:NAME, letters, digits, _, - and ., at most 64)`,
	} {
		if got, err := ParseAddress(in); err == nil || err.Error() != want {
			t.Errorf("%q: got %+v, %v\nwant %s", in, got, err, want)
		}
	}
}

func TestAddressesThatOneProcessCannotBoth(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{":80", ":80", true},
		{":80", "127.0.0.1:80", true},
		{":80", "[::1]:80", true},
		{":80", "0.0.0.0:80", true},
		{"0.0.0.0:80", "127.0.0.1:80", true},
		{"0.0.0.0:80", "[::1]:80", false},
		{"127.0.0.1:80", "127.0.0.2:80", false},
		{"127.0.0.1:80", "[::ffff:127.0.0.1]:80", true},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{":80", ":81", false},
		{"localhost:80", "LOCALHOST:80", true},
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "unix:/b", false},
		{"unix:/a", ":80", false},
	} {
		a, errA := ParseAddress(c.a)
		b, errB := ParseAddress(c.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if a.overlaps(b) != c.want || b.overlaps(a) != c.want {
			t.Errorf("%s and %s: want %v", a, b, c.want)
		}
	}
}

func TestPrefixes(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "10.1.2.3": "10.1.2.3/32", "::/0": "::/0", "2001:db8::1": "2001:db8::1/128",
		"::ffff:10.0.0.0/104": "10.0.0.0/8", "::ffff:10.0.0.1": "10.0.0.1/32",
	} {
		if got, w := parsePrefix(in); w != nil || got.String() != want {
			t.Errorf("%q: got %v, %v, want %s", in, got, w, want)
		}
	}
	for _, in := range []string{"", "x", "10.0.0.0/33", "10.0.0.1/8", "10.0/8", "fe80::1%eth0", "::/129"} {
		if got, w := parsePrefix(in); w == nil {
			t.Errorf("%q is read as %v", in, got)
		}
	}
}
