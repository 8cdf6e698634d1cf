package line

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

const help = "ECHO text, TIME, WHO, COUNT, HELP, QUIT"

// parse takes a line apart: the verb in upper case, and what follows the first blank. Both are empty for an empty line. An argument is part of line, unchanged.
func parse(line []byte) (verb string, arg []byte) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	first, rest, _ := bytes.Cut(line, []byte(" "))
	return string(bytes.ToUpper(first)), rest
}

// appendAnswer appends the answer to a command, with its line end, and reports whether the session ends with it.
func (s *Server) appendAnswer(dst []byte, verb string, arg []byte) (answer []byte, quit bool) {
	switch verb {
	case "ECHO":
		dst = append(dst, arg...)
	case "TIME":
		dst = time.Now().AppendFormat(dst, time.RFC3339Nano)
	case "WHO":
		dst = append(dst, s.Name...)
	case "COUNT":
		dst = strconv.AppendUint(dst, s.taken.Load(), 10)
	case "HELP":
		dst = append(dst, help...)
	case "QUIT":
		dst, quit = append(dst, "BYE"...), true
	default:
		dst = fmt.Appendf(dst, "ERR unknown command %.32q (%s)", verb, help)
	}
	return append(dst, '\n'), quit
}
