// Package line is a small line-protocol server, the backend of tproxy's demo and an example of a server that behaves well behind a proxy:
// it bounds lines and time, answers everything a client sent before its FIN, and stops without cutting an answer.
//
//	srv := &line.Server{Name: "one"}
//	ln, err := net.Listen("tcp", "127.0.0.1:9000")
//	if err != nil {
//		return err
//	}
//	go srv.Serve(ln)
//	…
//	return srv.Shutdown(ctx)
//
// A client sends one command a line, ended by LF or CRLF; the end of the stream ends the last line too. Every line that is not empty is answered with
// exactly one line, in order; commands may be sent without waiting for answers. Verbs are in upper or lower case.
//
//	ECHO text  the text
//	TIME       the server's time (RFC 3339)
//	WHO        the server's name
//	COUNT      the sessions this server has taken so far
//	HELP       the commands
//	QUIT       BYE, and the end of the session
//
// Anything else is answered with a line that begins with ERR.
package line
