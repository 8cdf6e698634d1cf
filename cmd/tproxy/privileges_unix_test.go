//go:build unix

package main

import (
	"os"
	"os/user"
	"strconv"
	"testing"

	"github.com/tproxy/tproxy/internal/config"
)

func TestIdentityOfTheConfiguration(t *testing.T) {
	if id, err := identityOf(config.Process{}); id != nil || err != nil || !id.assumed() {
		t.Errorf("nothing is asked for: %v, %v", id, err)
	}
	me, err := user.Current()
	if err != nil {
		t.Skip(err)
	}
	id, err := identityOf(config.Process{User: me.Username})
	if err != nil || !id.assumed() {
		t.Errorf("myself: %+v, %v", id, err)
	}
	const nobody = "4123456"
	id, err = identityOf(config.Process{User: nobody, Group: nobody})
	if err != nil || id.uid != 4123456 || id.gid != 4123456 || id.groups == nil || id.assumed() {
		t.Errorf("a number without an entry: %+v, %v", id, err)
	}
	id, err = identityOf(config.Process{Group: nobody})
	if err != nil || id.uid != os.Geteuid() || id.gid != 4123456 || id.groups != nil {
		t.Errorf("a group alone: %+v, %v", id, err)
	}
	for _, c := range []config.Process{{User: "no such user"}, {Group: "no such group"}, {User: nobody}, {User: "-1"}, {Group: strconv.Itoa(-2)}} {
		if id, err := identityOf(c); err == nil {
			t.Errorf("%+v: %+v", c, id)
		}
	}
}
