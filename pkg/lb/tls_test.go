package lb_test

import (
	"encoding/pem"
	"strings"
	"testing"

	"difylb/pkg/lb"
	"difylb/test/testbed"
)

func TestInstanceTLS_Faults(t *testing.T) {
	ca := testbed.NewCA(t, "ours").PEM
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte{1}}))
	broken := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1, 2, 3}}))
	for _, c := range []struct {
		name string
		url  string
		tls  lb.InstanceTLS
		path string // of the fault; "" for none
		want string
	}{
		{"nothing set", "https://h", lb.InstanceTLS{}, "", ""},
		{"an authority", "https://h", lb.InstanceTLS{CA: ca, ServerName: "dify.internal"}, "", ""},
		{"two authorities, with text between", "https://h", lb.InstanceTLS{CA: "# first\n" + ca + "\n# second\n" + ca}, "", ""},
		{"an address for a name", "https://h", lb.InstanceTLS{ServerName: "10.0.0.7"}, "", ""},
		{"nothing verified", "https://h", lb.InstanceTLS{InsecureSkipVerify: true, ServerName: "h"}, "", ""},
		{"in clear", "http://h", lb.InstanceTLS{CA: ca}, "tls", "https url"},
		{"by host", "", lb.InstanceTLS{}, "tls", "https url"},
		{"the name of a file", "https://h", lb.InstanceTLS{CA: "/etc/ssl/ca.pem"}, "tls.ca", "not the name of a file"},
		{"cut off", "https://h", lb.InstanceTLS{CA: ca[:len(ca)-40]}, "tls.ca", "block 1 is broken"},
		{"the second cut off", "https://h", lb.InstanceTLS{CA: ca + ca[:len(ca)-40]}, "tls.ca", "block 2 is broken"},
		{"not a certificate", "https://h", lb.InstanceTLS{CA: ca + broken}, "tls.ca", "certificate 2 can't be read"},
		{"a key", "https://h", lb.InstanceTLS{CA: key}, "tls.ca", "private key"},
		{"too long", "https://h", lb.InstanceTLS{CA: strings.Repeat("x", lb.MaxCABytes+1)}, "tls.ca", "at most"},
		{"an authority that is not asked", "https://h", lb.InstanceTLS{CA: ca, InsecureSkipVerify: true}, "tls.ca", "insecure_skip_verify"},
		{"a URL for a name", "https://h", lb.InstanceTLS{ServerName: "https://h"}, "tls.server_name", "not a host name"},
		{"a name with a port", "https://h", lb.InstanceTLS{ServerName: "h:443"}, "tls.server_name", "not a host name"},
		{"a pattern", "https://h", lb.InstanceTLS{ServerName: "*.h"}, "tls.server_name", "not a host name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := lb.Instance{Name: "a", URL: c.url, Token: "app-1", TLS: &c.tls}
			if c.url == "" {
				in.Host, in.Port = "h", 80
			}
			in.SetDefaults()
			fs := in.Validate("")
			if c.path == "" {
				if len(fs) > 0 {
					t.Fatal(fs)
				}
				return
			}
			if len(fs) != 1 || fs[0].Path != c.path || !strings.Contains(fs[0].Message, c.want) {
				t.Errorf("faults %v, want one at %s with %q", fs, c.path, c.want)
			}
			if strings.Contains(fs.Error(), "EC PRIVATE") {
				t.Error("shows a key")
			}
		})
	}
}

func TestInstanceTLS_CloneSharesNothing(t *testing.T) {
	a := lb.NewApplication("shop")
	a.Instances = []lb.Instance{{Name: "a", TLS: &lb.InstanceTLS{ServerName: "x"}}}
	a.Clone().Instances[0].TLS.ServerName = "y"
	if a.Instances[0].TLS.ServerName != "x" {
		t.Error("the copy's settings are the original's")
	}
}
