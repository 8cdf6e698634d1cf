package filewatch

import (
	"os"
	"path/filepath"
	"strings"
)

// mostLinks ends a circle of links, as the system does.
const mostLinks = 40

// A route is the way to a file.
type route struct {
	steps   map[string]bool // the links on it and the file, with no link in the path of each; or what is missing
	folders map[string]bool // they are in
}

// find follows every link in an absolute path.
func find(path string) route {
	r := route{steps: make(map[string]bool), folders: make(map[string]bool)}
	step := func(in, name string) string {
		p := filepath.Join(in, name)
		r.steps[p], r.folders[in] = true, true
		return p
	}
	at, names := split(path)
	for links := 0; len(names) > 0; {
		name, rest := names[0], names[1:]
		if name == ".." {
			at, names = filepath.Dir(at), rest
			continue
		}
		info, err := os.Lstat(filepath.Join(at, name))
		switch {
		case err != nil || links == mostLinks:
			step(at, name)
			return r
		case info.Mode()&os.ModeSymlink != 0:
			links++
			target, err := os.Readlink(step(at, name))
			if err != nil {
				return r
			}
			if filepath.IsAbs(target) {
				at, names = split(target)
			} else {
				names = parts(target)
			}
			names = append(names, rest...)
		default:
			if len(rest) == 0 {
				step(at, name)
			}
			at, names = filepath.Join(at, name), rest
		}
	}
	return r
}

// split cuts an absolute path into its root and the names in it.
func split(path string) (root string, names []string) {
	volume := filepath.VolumeName(path)
	return volume + string(filepath.Separator), parts(path[len(volume):])
}

// parts are the names in a path. A name before ".." stays: it may be a link.
func parts(path string) (names []string) {
	for _, name := range strings.FieldsFunc(path, func(c rune) bool { return os.IsPathSeparator(uint8(c)) && c < 128 }) {
		if name != "." {
			names = append(names, name)
		}
	}
	return names
}
