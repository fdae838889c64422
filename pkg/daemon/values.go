package daemon

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"difylb/pkg/lb"
)

// CheckAddress reports, as a UsageError, what can't be an address to listen at
// or to dial: host:port, the host may be empty.
func CheckAddress(flag, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return Usagef("--%s: %q is not an address such as 127.0.0.1:8082 or :8082", flag, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return Usagef("--%s: %q has the port %q; it must be 0 to 65535", flag, addr, port)
	}
	if host != "" && net.ParseIP(strings.Split(host, "%")[0]) == nil && !strings.ContainsFunc(host, unicode.IsLetter) {
		return Usagef("--%s: %q has the host %q, which is neither an IP address nor a name", flag, addr, host)
	}
	return nil
}

// CheckListenURL reports, as a UsageError, what can't be a URL for the embedded
// etcd to listen at: http://HOST:PORT, where HOST is an IP address or
// localhost and http:// may be left away, or unix:///path.
func CheckListenURL(flag, addr string) error {
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok {
		scheme, rest = "http", addr
	}
	switch scheme {
	case "unix":
		if !strings.HasPrefix(rest, "/") || rest == "/" {
			return Usagef("--%s: %q names no absolute path; write unix:///path", flag, addr)
		}
		return nil
	case "http":
	default:
		return Usagef("--%s: %q has the scheme %q; it must be http or unix", flag, addr, scheme)
	}
	rest = strings.TrimSuffix(rest, "/")
	host, _, err := net.SplitHostPort(rest)
	if err != nil {
		return Usagef("--%s: %q is not a URL such as http://127.0.0.1:2379 or unix:///path", flag, addr)
	}
	if err := CheckAddress(flag, rest); err != nil {
		return err
	}
	// etcd binds to no other names.
	if host != "localhost" && net.ParseIP(host) == nil {
		return Usagef("--%s: %q has the host %q, which is neither an IP address nor localhost", flag, addr, host)
	}
	return nil
}

// Advertised turns a listener's address into one that others can dial: an
// unspecified host becomes the first address of this machine that is not
// loopback or link-local, or loopback where there is none. Other addresses,
// and those that are not TCP's, stay as they are.
func Advertised(addr net.Addr) string {
	a, ok := addr.(*net.TCPAddr)
	if !ok || !a.IP.IsUnspecified() && a.IP != nil {
		return addr.String()
	}
	port := strconv.Itoa(a.Port)
	addrs, err := net.InterfaceAddrs()
	if err == nil {
		for _, x := range addrs {
			n, ok := x.(*net.IPNet)
			if ok && n.IP.IsGlobalUnicast() && !n.IP.IsLoopback() {
				return net.JoinHostPort(n.IP.String(), port)
			}
		}
	}
	return net.JoinHostPort("127.0.0.1", port)
}

// SizeValue is a flag that takes sizes such as 100m.
type SizeValue lb.Size

func (v *SizeValue) String() string { return lb.Size(*v).String() }

// Set implements pflag.Value.
func (v *SizeValue) Set(s string) error { return (*lb.Size)(v).UnmarshalText([]byte(s)) }

// Type implements pflag.Value.
func (v *SizeValue) Type() string { return "size" }

// Prefixes is a flag that takes networks: a comma-separated list of CIDRs or
// single addresses, and the word "private" for loopback and private ranges.
// The zero value holds none.
type Prefixes []netip.Prefix

// privateRanges are loopback, RFC 1918, RFC 4193 and link-local addresses.
var privateRanges = []string{"127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "169.254.0.0/16", "fe80::/10"}

// PrivatePrefixes returns loopback and private ranges.
func PrivatePrefixes() Prefixes {
	var out Prefixes
	for _, s := range privateRanges {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func (v *Prefixes) String() string { return strings.Join(v.GetSlice(), ",") }

// Type implements pflag.Value.
func (v *Prefixes) Type() string { return "cidrs" }

// Set implements pflag.Value; it replaces what was there.
func (v *Prefixes) Set(s string) error { return v.Replace(strings.Split(s, ",")) }

// Append implements pflag.SliceValue.
func (v *Prefixes) Append(s string) error {
	ps, err := parsePrefix(s)
	*v = append(*v, ps...)
	return err
}

// Replace implements pflag.SliceValue.
func (v *Prefixes) Replace(items []string) error {
	var out Prefixes
	for _, s := range items {
		ps, err := parsePrefix(s)
		if err != nil {
			return err
		}
		out = append(out, ps...)
	}
	*v = out
	return nil
}

// GetSlice implements pflag.SliceValue.
func (v *Prefixes) GetSlice() []string {
	out := make([]string, len(*v))
	for i, p := range *v {
		out[i] = p.String()
	}
	return out
}

// Contains reports whether one of the networks holds the address.
func (v Prefixes) Contains(a netip.Addr) bool {
	a = a.Unmap()
	for _, p := range v {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func parsePrefix(s string) (Prefixes, error) {
	s = strings.TrimSpace(s)
	switch s {
	case "":
		return nil, nil
	case "private":
		return PrivatePrefixes(), nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return Prefixes{p.Masked()}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a network such as 10.0.0.0/8, an address, or the word private", s)
	}
	return Prefixes{netip.PrefixFrom(a, a.BitLen())}, nil
}
