package proxy

import (
	"strconv"
	"time"
)

// appendSeedLine writes the line but for its end, as the OpenResty balancer
// wrote its app_routing.log, so that what reads that goes on: its own names for
// application, user and instance, and nginx's for the rest, times in seconds.
// What is not known is "-", as there.
func (l *AccessLog) appendSeedLine(b []byte, c *call, now time.Time) []byte {
	b = append(b, `{"time":"`...)
	b = l.appendTime(b, now)
	b = append(b, `","remote_addr":"`...)
	if c.client.IsValid() {
		b = c.client.AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, `","request_method":`...)
	b = appendJSONString(b, c.method)
	b = append(b, `,"uri":`...)
	b = appendJSONString(b, c.path[:min(len(c.path), loggedPath)])
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(c.status), 10)
	b = append(b, `,"body_bytes_sent":`...)
	b = strconv.AppendInt(b, c.bytesOut, 10)
	b = append(b, `,"request_time":`...)
	b = appendThousandths(b, now.Sub(c.start), time.Second)
	if c.firstByte > 0 {
		b = append(b, `,"upstream_header_time":`...)
		b = appendThousandths(b, c.firstByte, time.Second)
	}
	app, instance := "-", "-"
	if c.app != nil {
		app = c.app.app.Decl.Name
	}
	if c.instance != "" {
		instance = c.instance
	}
	b = append(b, `,"app_type":"`...)
	b = append(b, app...)
	b = append(b, `","user_id":`...)
	switch user := c.user; {
	case user == "" || c.app == nil:
		b = append(b, `"-","hash_key":"-"`...)
	case l.opts.Users:
		b = appendJSONString(b, user)
		b = append(b, `,"hash_key":"`...)
		b = append(append(b, app...), ':')
		at := len(b)
		b = appendJSONString(b, user)
		b = append(b[:at], b[at+1:]...) // it goes on in the same string
	default:
		b = append(b, '"')
		at := len(b)
		b = c.p.appendUserHash(b, user)
		end := len(b)
		b = append(b, `","hash_key":"`...)
		b = append(append(b, app...), ':')
		b = append(b, b[at:end]...)
		b = append(b, `","user_id_hashed":true`...)
	}
	b = append(b, `,"backend_instance":"`...)
	b = append(b, instance...)
	b = append(b, `","request_id":`...)
	b = appendJSONString(b, c.id)
	b = append(b, `,"reason":"`...)
	b = append(b, c.reason.String()...)
	return append(b, '"')
}
