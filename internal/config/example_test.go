package config_test

import (
	"fmt"

	"github.com/tproxy/tproxy/internal/config"
)

func ExampleParse() {
	_, err := config.Parse("tproxy.yaml", []byte(`
listeners:
  db:
    address: ":99999"
    max_conections: 100
groups:
  db:
    backends: ["10.0.0.1:5432"]
`), config.Options{Set: []string{"groups.db.connect.timeout=5"}})
	fmt.Println(err)
	// Output:
	// tproxy.yaml:4:14: listeners.db.address: port out of range in ":99999" (0 to 65535)
	// tproxy.yaml:5:5: listeners.db.max_conections: unknown key "max_conections" (did you mean max_connections?)
	// --set: groups.db.connect.timeout: a duration without a unit: "5" (a number and a unit: 250ms, 5s, 1h)
}

func ExampleLoad() {
	cfg, err := config.Load("../../configs/minimal.yaml", config.Options{
		Environ: []string{"TPROXY_LISTENERS__DB__TIMEOUTS__IDLE=10m"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, name := range cfg.ListenerNames {
		l := cfg.Listeners[name]
		fmt.Println(name, l.Address, l.Group, l.Timeouts.Idle, len(cfg.Groups[l.Group].Backends))
	}
	// Output: db [:5432] db 10m0s 2
}
