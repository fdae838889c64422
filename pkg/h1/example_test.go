package h1_test

import (
	"bytes"
	"fmt"

	"difylb/pkg/h1"
)

// A request is parsed while its bytes arrive, its head is written anew for an
// instance, and its body is decoded piece by piece.
func Example() {
	arriving := []string{
		"POST /v1/chat-messages HTTP/1.1\r\nHost: lb.example\r\nX-User-ID: anna\r\nAuthor",
		"ization: Bearer user-token\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"query\":",
		"\"hello\"\r\n1\r\n}\r\n0\r\n\r\n",
	}
	var (
		buf []byte
		req h1.Request
		n   int
	)
	for err := error(h1.ErrIncomplete); err != nil; {
		buf, arriving = append(buf, arriving[0]...), arriving[1:]
		if n, err = req.Parse(buf, nil); err != nil && err != h1.ErrIncomplete {
			fmt.Println(err) // an *h1.Error: answer with its Status, close
			return
		}
	}
	head, rest := buf[:n], buf[n:]

	var out h1.Head
	out.Request(req.MethodName.In(head), req.AppendTarget(nil, head))
	for _, f := range req.Fields {
		if f.Hop || f.ID == h1.Authorization || f.ID == h1.Underscored {
			continue
		}
		out.Copy(f, head)
	}
	out.Field("Authorization", "Bearer instance-token")
	out.Field("Transfer-Encoding", "chunked")
	out.End()
	fmt.Printf("%s%v\n", bytes.ReplaceAll(out.Buf, []byte("\r"), nil), out.Err)

	var body h1.Chunked
	body.Reset(nil)
	for !body.Done() {
		if len(rest) == 0 {
			rest, arriving = []byte(arriving[0]), arriving[1:]
		}
		data, n, err := body.Next(rest)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s", data)
		rest = rest[n:]
	}
	// Output:
	// POST /v1/chat-messages HTTP/1.1
	// Host: lb.example
	// X-User-ID: anna
	// Authorization: Bearer instance-token
	// Transfer-Encoding: chunked
	//
	// <nil>
	// {"query":"hello"}
}
