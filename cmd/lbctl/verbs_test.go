package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

const (
	userToken     = "usertoken--customer-service-v1"
	instanceToken = "app-9VSEFXR2qoMRoUHfmzxClGhe"
	secondToken   = "app-kwMz2oOx7WZpiP4buVFoMwcf"
)

func addCustomerService(r *rig) {
	r.t.Helper()
	out := r.ok("app", "add", "customer_service", "--token", userToken,
		"--instance", "name=dify1,url=http://172.20.62.200:80,token="+instanceToken+",weight=1",
		"--instance", "name=dify2,host=172.20.62.201,token="+secondToken)
	if out != "application customer_service added, with 2 instances and 1 user token\n" {
		r.t.Errorf("says %q", out)
	}
}

func TestApp_LivesAsTheContractWritesIt(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	a := decodeInto[admin.Application](t, r.ok("app", "get", "customer_service", "-o", "json"))
	if a.Name != "customer_service" || len(a.Instances) != 2 || len(a.UserTokens) != 1 || a.Instances[0].URL != "http://172.20.62.200:80" || a.Instances[1].Port != 80 {
		t.Errorf("stored %+v", a)
	}
	if e := decodeInto[admin.Explanation](t, r.ok("explain", "--user-token", userToken, "u1", "-o", "json")); e.App != "customer_service" {
		t.Errorf("the user token leads to %q", e.App)
	}
	r.ok("app", "set", "customer_service", "timeouts.read=600s", "retry.attempts=1", "--hash", "xxhash", "--set", "rate_limit.per_app={rate: 50, burst: 10}")
	a = decodeInto[admin.Application](t, r.ok("app", "get", "customer_service", "-o", "json"))
	if a.Timeouts.Read.String() != "10m" || a.Retry.Attempts != 1 || a.ConsistentHash.HashAlgorithm != lb.XXHash || a.RateLimit.PerApp == nil || a.RateLimit.PerApp.PerSecond != 50 || a.Timeouts.Send.String() != "5m" {
		t.Errorf("after set %+v", a.Application)
	}
	r.ok("app", "set", "customer_service", "rate_limit.per_app=null", "timeouts.read=null")
	a = decodeInto[admin.Application](t, r.ok("app", "get", "customer_service", "-o", "json"))
	if a.RateLimit.PerApp != nil || a.Timeouts.Read.String() != "5m" {
		t.Errorf("null leaves %+v, %+v", a.RateLimit, a.Timeouts)
	}
	if out := r.ok("app", "list"); !strings.Contains(out, "customer_service") {
		t.Errorf("list: %s", out)
	}
	if out := r.ok("apps", "ls", "-o", "yaml"); !strings.Contains(out, "name: customer_service") {
		t.Errorf("list -o yaml: %s", out)
	}
	r.fails(1, "customer_service", "app", "create", "customer_service", "--token", "other-user-token-01")
	r.ok("app", "rm", "customer_service")
	r.fails(1, "customer_service", "app", "get", "customer_service")
	noSecrets(t, r.bench, userToken, instanceToken, secondToken)
}

// noSecrets fails when any output of the bench held one of the tokens.
func noSecrets(t *testing.T, b *bench, secrets ...string) {
	t.Helper()
	secrets = append(secrets, b.env["LBCTL_TOKEN"])
	for _, s := range secrets {
		if s != "" && strings.Contains(b.log.String(), s) {
			t.Errorf("a token was shown:\n%s", b.log.String())
		}
	}
}

func TestApp_AddRefusesEveryFaultBeforeAsking(t *testing.T) {
	b := newBench(t)
	b.env["LBCTL_SERVER"] = "http://127.0.0.1:1" // nobody must be asked
	for _, c := range []struct{ words, args string }{
		{`app add shop: 3 faults|consistent_hash.hash_algorithm: "md4"|--instance "a" url: "ftp://x"|--instance "a" weight: 99999`, "app add shop --hash md4 --instance name=a,url=ftp://x,weight=99999,token=" + instanceToken},
		{`"Shop" is not a name`, "app add Shop"},
		{`--instance: there is no field "wieght"; did you mean "weight"`, "app add shop --instance name=a,wieght=1"},
		{`--instance: weight: "heavy" is not a whole number`, "app add shop --instance name=a,weight=heavy"},
		{`--instance: fail_timeout: "soon" is not a duration`, "app add shop --instance name=a,fail_timeout=soon"},
		{`--instance: name is set twice`, "app add shop --instance name=a,name=b"},
		{`has no key=`, "app add shop --instance name=a,x"},
		{`--virtual-nodes: consistent_hash.virtual_nodes: "many"`, "app add shop --virtual-nodes many"},
		{`--token is empty`, "app add shop --token="},
		{`has no flag --instnace; did you mean "instance"`, "app add shop --instnace x"},
		{`app add needs NAME`, "app add"},
		{`nothing belongs where "b" stands`, "app add a b"},
		{`there is no field "timeouts.raed"; did you mean "read"`, "app set shop timeouts.raed=3s"},
		{`timeouts.read: "fast" is not a duration`, "app set shop timeouts.read=fast"},
		{`retry.attempts: 99 is out of range`, "app set shop retry.attempts=99"},
		{`a name stays`, "app set shop name=b"},
		{`is a list, which has commands of its own`, "app set shop instances=x"},
		{`there is nothing below max_body`, "app set shop max_body.x=1"},
		{`nothing to change`, "app set shop"},
		{`"timeouts" is not field=value`, "app set shop timeouts"},
		{`weight: -1 is out of range`, "instance set shop dify1 weight=-1"},
		{`instance set needs NAME`, "instance set shop weight=1"},
		{`instance add: 2 faults|host: is missing|token: is missing`, "instance add shop dify9"},
		{`before "add"`, "--token x app add shop"},
	} {
		b.fails(2, c.words, strings.Fields(c.args)...)
	}
	noSecrets(t, b, instanceToken)
}

func TestInstance_AddSetAndRemove(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	r.ok("instance", "add", "customer_service", "dify3", "--url", "https://api.dify.ai", "--token", "app-third-token-0003")
	r.ok("instance", "add", "customer_service", "dify4", "host=10.0.0.7", "port=5001", "token=app-fourth-token-004", "--weight", "2")
	r.ok("instance", "add", "customer_service", `name=dify5,url=http://10.0.0.8:5001,token="app-fifth,token-0005"`)
	r.ok("instance", "set", "customer_service", "dify1", "weight=2", "max_in_flight=8")
	r.ok("instance", "set", "customer_service", "dify1", "host=10.9.9.9", "port=81")
	r.ok("instance", "set", "customer_service", "dify2", "--url", "https://two.example.com")
	in := decodeInto[admin.Instance](t, r.ok("instance", "get", "customer_service", "dify1", "-o", "json"))
	if in.Weight != 2 || in.MaxInFlight != 8 || in.Host != "10.9.9.9" || in.Port != 81 || in.URL != "" || in.TokenHint != "lGhe" {
		t.Errorf("dify1 is %+v", in)
	}
	list := decodeInto[admin.List[admin.Instance]](t, r.ok("instance", "list", "customer_service", "-o", "json"))
	var names []string
	for _, in := range list.Items {
		names = append(names, in.Name+"="+addressOf(&in.Instance))
	}
	want := "dify1=10.9.9.9:81 dify2=https://two.example.com dify3=https://api.dify.ai dify4=10.0.0.7:5001 dify5=http://10.0.0.8:5001"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("instances %s, want %s", got, want)
	}
	if !strings.Contains(r.ok("instance", "get", "customer_service", "dify1"), "10.9.9.9:81") {
		t.Error("the table does not hold the address")
	}
	r.ok("instance", "rm", "customer_service", "dify5")
	r.fails(1, "dify5", "instance", "rm", "customer_service", "dify5")
	noSecrets(t, r.bench, instanceToken, secondToken, "app-third-token-0003", "app-fourth-token-004", "app-fifth,token-0005")
}

func TestInstance_DrainWaitsAsTheContractWritesIt(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	r.hub.set(0)
	if out := r.ok("instance", "drain", "customer_service", "dify1", "--wait", "60s"); !strings.Contains(out, "is draining and drained: nothing is open") {
		t.Errorf("says %q", out)
	}
	if out := r.ok("instance", "activate", "customer_service", "dify1"); !strings.Contains(out, "is active") {
		t.Errorf("says %q", out)
	}
	r.hub.set(3, played("p1", 1<<40))
	code, out, errs := r.run("instance", "drain", "customer_service", "dify1", "--wait", "50ms")
	if code != 1 || !strings.Contains(out, "3 requests still open") || !strings.Contains(errs, "is not drained after 50ms") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	s := decodeInto[admin.InstanceState](t, r.ok("instance", "disable", "customer_service", "dify1", "-o", "json"))
	if s.State != lb.Disabled || s.Open != 3 || s.Drained {
		t.Errorf("state %+v", s)
	}
	r.fails(2, `"-5s" is negative`, "instance", "drain", "customer_service", "dify1", "--wait", "-5s")
}

func TestToken_MadeShownOnceAndRemovedByLabel(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	code, out, errs := r.run("token", "add", "customer_service", "--label", "web")
	made := strings.TrimSpace(out)
	if code != 0 || len(made) < 43 || strings.Contains(errs, made) {
		t.Fatalf("exit code %d: %q, %q", code, out, errs)
	}
	if e := decodeInto[admin.Explanation](t, r.ok("explain", "--user-token", made, "u1", "-o", "json")); e.App != "customer_service" {
		t.Errorf("the token that was made leads to %q", e.App)
	}
	r.log.Reset()
	if out := r.ok("token", "list", "customer_service"); !strings.Contains(out, "web") || strings.Contains(out, made) {
		t.Errorf("list: %s", out)
	}
	r.ok("token", "add", "customer_service", "second-user-token-02", "--disabled")
	r.stdin = "third-user-token-0003\n"
	r.ok("token", "add", "customer_service", "-")
	r.ok("token", "add", "customer_service", "--token", "fourth-user-token-04")
	list := decodeInto[admin.List[admin.UserToken]](t, r.ok("token", "list", "customer_service", "-o", "json"))
	if len(list.Items) != 5 || !list.Items[2].Disabled || list.Items[3].ID != lb.Secret("third-user-token-0003").Hash().ID() {
		t.Errorf("tokens %+v", list.Items)
	}
	r.ok("token", "disable", "customer_service", "web")
	r.fails(1, "no application has this token", "explain", "--user-token", made, "u1")
	r.ok("token", "enable", "customer_service", "web")
	r.ok("explain", "--user-token", made, "u1")
	if again := decodeInto[admin.List[admin.UserToken]](t, r.ok("token", "list", "customer_service", "-o", "json")); !slices.EqualFunc(again.Items, list.Items, func(a, b admin.UserToken) bool {
		return a.ID == b.ID && a.Hint == b.Hint && a.Label == b.Label && a.Disabled == b.Disabled && a.Created.Equal(*b.Created)
	}) {
		t.Errorf("the tokens became %+v, were %+v", again.Items, list.Items)
	}
	r.ok("token", "rm", "customer_service", "web")
	r.ok("token", "rm", "customer_service", lb.Secret(userToken).Hash().ID())
	r.fails(1, "no user token with the id or label", "token", "rm", "customer_service", "web")
	r.fails(2, "given twice", "token", "add", "customer_service", "a", "--token", "b")
	r.stdin = ""
	r.fails(2, "standard input holds no token", "token", "add", "customer_service", "-")
	noSecrets(t, r.bench, made, userToken, "second-user-token-02", "third-user-token-0003", "fourth-user-token-04")
}

const shopYAML = `applications:
  shop:
    user_tokens: [shop-user-token-0001]
    instances:
      - {name: a, host: 10.0.0.1, token: app-shop-token-00001}
      - {name: b, host: 10.0.0.2, token: app-shop-token-00002}
`

func TestApply_DiffExportAndPrune(t *testing.T) {
	r := newRig(t)
	shop := r.file("shop.yaml", shopYAML)
	if out := r.ok("apply", "-f", shop, "--dry-run"); !strings.Contains(out, "dry run: nothing was changed") || !strings.Contains(out, "created  application  shop") {
		t.Errorf("dry run says %s", out)
	}
	code, out, errs := r.run("diff", "-f", shop)
	if code != 1 || errs != "" || !strings.Contains(out, "+ name: a") {
		t.Errorf("diff: exit code %d: %s%s", code, out, errs)
	}
	r.ok("apply", "-f", shop)
	if out := r.ok("diff", "-f", shop); out != "" {
		t.Errorf("diff of what was applied: %s", out)
	}
	if out := r.ok("apply", "-f", shop); !strings.Contains(out, "nothing changes") {
		t.Errorf("the second apply says %s", out)
	}
	changed := r.file("changed.yaml", strings.Replace(shopYAML, "host: 10.0.0.2", "host: 10.0.0.3, weight: 3", 1))
	code, out, _ = r.run("diff", "-f", changed)
	if code != 1 || !strings.Contains(out, "- host: 10.0.0.2") || !strings.Contains(out, "+ host: 10.0.0.3") || !strings.Contains(out, "+ weight: 3") || strings.Contains(out, "10.0.0.1") {
		t.Errorf("diff: exit code %d:\n%s", code, out)
	}
	token := r.file("token.yaml", strings.Replace(shopYAML, "app-shop-token-00002", "app-shop-other-00002", 1))
	if code, out, _ = r.run("diff", "-f", token); code != 1 || !strings.Contains(out, "its token changes") {
		t.Errorf("diff of a token that looks the same: exit code %d:\n%s", code, out)
	}
	if out := r.ok("apply", "-f", changed); !strings.Contains(out, "of the users of shop move to another instance") {
		t.Errorf("apply says %s", out)
	}
	r.stdin = strings.ReplaceAll(strings.ReplaceAll(shopYAML, "shop", "chat"), "10.0", "10.1")
	if out := r.ok("apply", "-f", "-", "--prune"); !strings.Contains(out, "deleted  application  shop") {
		t.Errorf("prune says %s", out)
	}
	export := r.ok("export")
	if !strings.Contains(export, "chat:") || strings.Contains(export, "shop:") || strings.Contains(export, "app-chat") {
		t.Errorf("export: %s", export)
	}
	file := r.file("export.yaml", export)
	if out := r.ok("apply", "-f", file); !strings.Contains(out, "nothing changes") {
		t.Errorf("an export applies with changes: %s", out)
	}
	noSecrets(t, r.bench, "shop-user-token-0001", "app-shop-token-00001", "app-shop-token-00002", "app-shop-other-00002")
	secret := r.ok("export", "--secrets", "-o", "json")
	if !strings.Contains(secret, "app-chat-token-00001") {
		t.Errorf("export --secrets holds no tokens: %s", secret)
	}
	back := r.file("backup.json", secret)
	r.ok("app", "rm", "chat", "--yes")
	r.ok("apply", "-f", back)
	if e := decodeInto[admin.Explanation](t, r.ok("explain", "--user-token", "chat-user-token-0001", "u", "-o", "json")); e.App != "chat" {
		t.Errorf("the restored token leads to %q", e.App)
	}
}

func TestApply_WaitsForProxies(t *testing.T) {
	r := newRig(t)
	shop := r.file("shop.yaml", shopYAML)
	r.hub.set(0, played("p1", 1<<40))
	if out := r.ok("apply", "-f", shop, "--wait", "10s"); !strings.Contains(out, "in force on 1 proxy node") {
		t.Errorf("says %s", out)
	}
	r.hub.set(0, played("p1", 1<<40), played("p2", 1))
	code, out, errs := r.run("apply", "-f", shop, "--wait", "50ms")
	if code != 1 || !strings.Contains(out, "not in force on p2") || !strings.Contains(errs, "not every proxy has it in force") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
}

func TestApply_SeveralFilesAreOneChange(t *testing.T) {
	r := newRig(t)
	shop := r.file("shop.yaml", shopYAML)
	chat := r.file("chat.yaml", "settings: {rate_limit: {per_ip: {rate: 5, burst: 5}}}\n"+strings.ReplaceAll(shopYAML, "shop", "chat"))
	before := len(decodeInto[admin.List[admin.HistoryEntry]](t, r.ok("history", "-o", "json")).Items)
	r.ok("apply", "-f", shop, "-f", chat)
	entries := decodeInto[admin.List[admin.HistoryEntry]](t, r.ok("history", "-o", "json")).Items
	if len(entries) != before+1 || entries[0].Count < 6 {
		t.Errorf("history %+v", entries)
	}
	r.fails(1, "applications.shop: stands in "+shop+", line 2 already", "apply", "-f", shop, "-f", r.file("again.yaml", shopYAML))
	r.fails(2, "is given twice", "apply", "-f", shop, "-f", shop)
}

func TestApply_ShowsEveryFaultWithItsLine(t *testing.T) {
	r := newRig(t)
	bad := r.file("bad.yaml", `applications:
  shop:
    missing_usr: auto
    instances:
      - name: a
        host: 10.0.0.1
        port: 70000
        token: app-shop-token-00001
      - name: a
        host: 10.0.0.2
        token: app-shop-token-00002
        weight: heavy
    user_tokens: [shop-user-token-0001]
`)
	chat := r.file("chat.yaml", strings.ReplaceAll(shopYAML, "applications:\n  shop", "applications:\n  chat"))
	for _, args := range [][]string{{"apply", "-f", bad}, {"validate", "-f", bad}, {"diff", "-f", bad}} {
		code, out, errs := r.run(args...)
		if code != 1 || out != "" {
			t.Errorf("%v: exit code %d, %s", args, code, out)
		}
		// What makes no sense is found together with what can't be read.
		for _, want := range []string{
			bad + `:3: applications.shop.missing_usr: there is no such key; did you mean "missing_user"`, bad + `:12: applications.shop.instances[1].weight: "heavy"`,
			bad + ":7: applications.shop.instances[0].port: 70000", bad + ":9: applications.shop.instances[1].name: \"a\" is the name of instances[0] already",
		} {
			if strings.Count(errs, want) != 1 {
				t.Errorf("%v: no %q, or more than one, in\n%s", args, want, errs)
			}
		}
	}
	r.ok("apply", "-f", chat)
	r.fails(1, "2 faults|sense.yaml:6: applications.shop.instances[1].port: 70000|sense.yaml:3: applications.shop.user_tokens[0]: this token belongs to", "apply", "-f",
		r.file("sense.yaml", strings.Replace(shopYAML, "host: 10.0.0.2", "host: 10.0.0.2, port: 70000", 1)))
	// Of several files, too, and of one that no list of applications is.
	list := r.file("list.yaml", "applications: [a]\n")
	thief := r.file("thief.yaml", strings.ReplaceAll(shopYAML, "shop:", "thief:"))
	r.fails(1, "3 faults|list.yaml:1: applications: |thief.yaml:3: applications.thief.user_tokens[0]: this token belongs to|colour.yaml:2: colour: ", "apply",
		"-f", list, "-f", thief, "-f", r.file("colour.yaml", "applications: {}\ncolour: red\n"))
	r.fails(1, `twice.yaml:3: applications.shop.user_tokens[0]: this token belongs to application "chat" already`, "validate", "-f", chat, "-f", r.file("twice.yaml", shopYAML))
	noSecrets(t, r.bench, "shop-user-token-0001", "app-shop-token-00001", "app-shop-token-00002")
}

func TestValidate_NeedsNoServer(t *testing.T) {
	b := newBench(t)
	b.env["LBCTL_SERVER"] = "http://127.0.0.1:1"
	shop := b.file("shop.yaml", shopYAML)
	if out := b.ok("validate", "-f", shop); out != shop+": valid, 1 application with 2 instances\n" {
		t.Errorf("says %q", out)
	}
	part := b.file("part.yaml", "applications: {shop: {user_tokens: [{id: 0123456789abcdef}], instances: [{name: a, host: h}]}}")
	b.fails(1, "2 faults|part.yaml:1: applications.shop.instances[0].token: is missing|is not the id of a stored token", "validate", "-f", part)
	b.ok("validate", "--partial", "-f", part)
	// What is wrong with a file is told even where nobody can apply it.
	b.fails(1, "2 faults|odd.yaml:1: colour: |odd.yaml:2: applications.shop.instances", "apply", "-f",
		b.file("odd.yaml", "colour: red\napplications: {shop: {instances: [{name: a, host: h, port: 70000, token: app-1234}]}}\n"))
	b.fails(1, "not YAML", "validate", "-f", b.file("broken.yaml", "a: ["))
	b.fails(2, "no such file", "validate", "-f", "nowhere.yaml")
	b.fails(2, "needs -f FILE", "validate")
}

func TestHistory_AndRollback(t *testing.T) {
	r := newRig(t)
	r.ok("apply", "-f", r.file("shop.yaml", shopYAML))
	first := decodeInto[admin.List[admin.HistoryEntry]](t, r.ok("history", "-o", "json")).Items[0]
	r.ok("instance", "set", "shop", "a", "weight=5")
	if out := r.ok("history", "--limit", "1"); !strings.Contains(out, "instance shop/a changed") || !strings.Contains(out, "admin") {
		t.Errorf("history: %s", out)
	}
	second := decodeInto[admin.List[admin.HistoryEntry]](t, r.ok("history", "-o", "json")).Items[0]
	if out := r.ok("history", itoa(second.Revision)); !strings.Contains(out, "- weight: 1") || !strings.Contains(out, "+ weight: 5") {
		t.Errorf("history of one revision: %s", out)
	}
	if out := r.ok("rollback", itoa(first.Revision), "--dry-run"); !strings.Contains(out, "dry run") {
		t.Errorf("dry run: %s", out)
	}
	r.ok("rollback", itoa(first.Revision))
	if in := decodeInto[admin.Instance](t, r.ok("instance", "get", "shop", "a", "-o", "json")); in.Weight != 1 {
		t.Errorf("weight %d after the rollback", in.Weight)
	}
	r.fails(1, "", "rollback", itoa(1<<40))
	r.fails(2, `"yesterday" is not a revision`, "rollback", "yesterday")
	r.fails(2, `"0" is not a revision`, "history", "0")
}

func itoa(n int64) string { return numberText(float64(n)) }

func TestAccess_RolesHold(t *testing.T) {
	r := newRig(t)
	code, out, errs := r.run("access", "add", "ci", "--role", "operator")
	token := strings.TrimSpace(out)
	if code != 0 || !strings.HasPrefix(token, "lb-") || strings.Contains(errs, token) {
		t.Fatalf("exit code %d: %q %q", code, out, errs)
	}
	r.log.Reset()
	if out := r.ok("access", "list"); !strings.Contains(out, "ci") || !strings.Contains(out, "operator") {
		t.Errorf("list: %s", out)
	}
	addCustomerService(r)
	file := r.file("ci.token", token+"\n")
	r.ok("instance", "drain", "customer_service", "dify1", "--token-file", file)
	r.fails(1, "this needs the role admin", "app", "rm", "customer_service", "--token-file", file)
	r.ok("access", "rm", "ci")
	r.fails(1, "not valid|--token-file "+file, "app", "list", "--token-file", file)
	r.fails(1, "no access token with the name or id", "access", "rm", "ci")
	r.fails(2, `--role "operatr": it is one of viewer, operator, admin; did you mean "operator"`, "access", "add", "x", "--role", "operatr")
	noSecrets(t, r.bench, token)
}

func TestExitCodes(t *testing.T) {
	r := newRig(t)
	closed := newBench(t)
	closed.env["LBCTL_SERVER"] = "http://127.0.0.1:1"
	closed.fails(3, "reach http://127.0.0.1:1|is lb-admin running? say where it is with --server or LBCTL_SERVER", "app", "list")
	closed.fails(3, "is lb-admin running?", "events")
	closed.fails(3, "is lb-admin running?", "status", "--watch")
	closed.fails(3, "is lb-admin running?", "top", "--looks", "1")

	delete(r.env, "LBCTL_TOKEN")
	r.fails(1, "there is no access token: use --token-file FILE or LBCTL_TOKEN; the first start of lb-admin writes <data-dir>/admin.token", "app", "list")
	r.env["LBCTL_TOKEN"] = "lb-wrong-token-000001"
	r.fails(1, "the token came from LBCTL_TOKEN", "app", "list")
	noSecrets(t, r.bench)

	for _, c := range []struct{ words, args string }{
		{`lbctl has no command "statsu"; did you mean "status"?`, "statsu --watch"},
		{`lbctl has no command "statsu"`, "--server http://x statsu --watch"},
		{`lbctl app has no command "lst"; did you mean "list"?`, "app lst -o json"},
		{`lbctl app needs one of add, get, list, rm, set`, "app"},
		{`lbctl app list has no flag --outptu; did you mean "output"?`, "app list --outptu json"},
		{`-o "xml": it is table, json or yaml`, "app list -o xml"},
		{`--timeout -1s: it must be more than 0`, "app list --timeout -1s"},
		{`invalid argument "soon"`, "app list --timeout soon"},
		{`server "ftp://x" is not a URL`, "app list --server ftp://x"},
		{`--token and --token-file are both given`, "app list --token a --token-file b"},
		{`read token: nowhere: no such file`, "app list --token-file nowhere"},
		{`the token from --token holds a space`, "app list --token a\x01b"},
		{`--ca: nowhere: no such file`, "app list --ca nowhere"},
		{`--cert and --key belong together`, "app list --cert x"},
		{`lbctl has no command "nothing"`, "help nothing"},
		{`--type "helth": it is one of|did you mean "health"`, "events --type helth"},
		{`--sort "erorrs"`, "top --sort erorrs"},
		{`"1ms" is too short`, "status --watch --interval 1ms"},
		{`explain needs USER`, "explain shop"},
		{`there is no completion for "tcsh"`, "completion tcsh"},
		{`--dry-run means something with --apply only`, "import lua x --dry-run"},
	} {
		r.fails(2, c.words, strings.Fields(c.args)...)
	}
	r.env["LBCTL_TIMEOUT"] = "soon"
	r.fails(2, `LBCTL_TIMEOUT: "soon"`, "app", "list")
	delete(r.env, "LBCTL_TIMEOUT")
	if out := r.ok("--version"); !strings.HasPrefix(out, "lbctl ") {
		t.Errorf("--version says %q", out)
	}
	if code, out, _ := r.run(); code != 0 || !strings.Contains(out, "Exit codes:") {
		t.Errorf("without a command: exit code %d, %s", code, out)
	}
}

func TestTimeout_IsNotReachable(t *testing.T) {
	b := newBench(t)
	hang := make(chan struct{})
	s := hangingServer(t, hang)
	defer close(hang)
	b.env["LBCTL_SERVER"] = s
	b.fails(3, "no answer within --timeout 50ms", "app", "list", "--timeout", "50ms")
}

func TestTLS_TrustsTheAuthorityThatIsNamed(t *testing.T) {
	b := newBench(t)
	var agent atomic.Value
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agent.Store(r.UserAgent())
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"items":[]}`)
	}))
	defer s.Close()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	b.env["LBCTL_SERVER"] = s.URL
	b.fails(3, "certificate", "app", "list")
	ca := b.file("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	b.ok("app", "list", "--ca", ca)
	if a, _ := agent.Load().(string); !strings.HasPrefix(a, "lbctl/") {
		t.Errorf("user agent %q", a)
	}
	b.ok("context", "set", "tls", "--server", s.URL, "--ca", "ca.pem")
	delete(b.env, "LBCTL_SERVER")
	b.ok("app", "list")
	b.fails(2, "holds no PEM certificate", "app", "list", "--ca", b.file("empty.pem", ""))
}

func TestContext_SuppliesServerAndToken(t *testing.T) {
	r := newRig(t)
	token := r.env["LBCTL_TOKEN"]
	server := r.env["LBCTL_SERVER"]
	delete(r.env, "LBCTL_TOKEN")
	delete(r.env, "LBCTL_SERVER")
	file := r.file("admin.token", token+"\n")
	r.ok("context", "set", "here", "--server", server, "--token-file", file)
	r.ok("context", "set", "gone", "--server", "http://127.0.0.1:1", "--token", token)
	r.ok("app", "list")
	path := filepath.Join(r.env["HOME"], ".config", "lbctl", "config.yaml")
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("contexts file: %v, %v", st, err)
	}
	r.fails(3, "127.0.0.1:1", "app", "list", "--context", "gone")
	r.env["LBCTL_CONTEXT"] = "gone"
	r.fails(3, "127.0.0.1:1", "app", "list")
	delete(r.env, "LBCTL_CONTEXT")
	// Flags beat the environment, which beats the current context.
	r.env["LBCTL_SERVER"] = "http://127.0.0.1:1"
	r.fails(3, "127.0.0.1:1", "app", "list")
	// A context's token goes to no other server.
	r.fails(1, "there is no access token", "app", "list", "--context", "gone", "--server", server)
	r.ok("app", "list", "--server", server)
	delete(r.env, "LBCTL_SERVER")
	if out := r.ok("context", "list"); !strings.Contains(out, "*  here") || !strings.Contains(out, "this file") {
		t.Errorf("list: %s", out)
	}
	r.ok("context", "use", "gone")
	r.fails(3, "127.0.0.1:1", "app", "list")
	r.ok("context", "rm", "gone")
	r.fails(2, `holds no context "gone"`, "context", "use", "gone")
	noSecrets(t, r.bench, token)

	r.env["LBCTL_CONFIG"] = r.file("other.yaml", "current-context: a\ncontexts:\n  a: {server: x, tokn: y}\n")
	r.fails(2, `other.yaml:3: context "a" has no key "tokn"; did you mean "token"`, "app", "list")
	r.env["LBCTL_CONFIG"] = r.file("other.yaml", "curent-context: a\n")
	r.fails(2, `other.yaml:1: the contexts file has no key "curent-context"`, "app", "list")
	r.fails(2, "nowhere.yaml: no such file", "app", "list", "--config", "nowhere.yaml")
	delete(r.env, "LBCTL_CONFIG")
	r.env["XDG_CONFIG_HOME"] = filepath.Join(r.env["HOME"], "xdg")
	r.file("xdg/lbctl/config.yaml", "current-context: b\ncontexts: {b: {server: 'http://127.0.0.1:2'}}\n")
	r.fails(3, "127.0.0.1:2", "app", "list")
}

func TestToken_LastResortIsTheLocalFile(t *testing.T) {
	r := newRig(t)
	r.file("data/lb-admin/admin.token", r.env["LBCTL_TOKEN"]+"\n")
	delete(r.env, "LBCTL_TOKEN")
	r.ok("app", "list")
	r.env["LBCTL_TOKEN_FILE"] = r.file("wrong", "lb-wrong-token-000001")
	r.fails(1, "LBCTL_TOKEN_FILE", "app", "list")
}

func TestRemove_AsksPeople(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	r.tweak = func(c *cli) { c.interactive = true }
	r.stdin = "n\n"
	r.fails(1, "nothing was done", "app", "rm", "customer_service")
	r.stdin = ""
	r.fails(1, "nothing was done", "instance", "rm", "customer_service", "dify1")
	r.stdin = "y\n"
	r.ok("instance", "rm", "customer_service", "dify1")
	r.stdin = ""
	r.ok("app", "rm", "customer_service", "--yes")
}

func TestEvents_FollowUntilInterrupted(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out syncBuffer
	r.tweak = func(c *cli) { c.out = &out }
	done := make(chan int, 1)
	go func() {
		code, _, _ := r.runContext(ctx, "events", "-o", "json")
		done <- code
	}()
	wait := func(word string) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for !strings.Contains(out.String(), word) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s in %s", word, out.String())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	wait(`"reset"`)
	cl, err := admin.NewClient(admin.ClientOptions{Server: r.server.URL, Token: r.tokens[admin.RoleAdmin]})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := cl.CreateApplication(ctx, map[string]any{"name": "shop"}); err != nil {
		t.Fatal(err)
	}
	wait(`"configuration"`)
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		decodeInto[map[string]any](t, line)
	}
}

func TestCompletion_AsksTheServer(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	for _, c := range []struct{ args, want string }{
		{"app get ", "customer_service"},
		{"instance drain customer_service ", "dify1"},
		{"token rm customer_service ", lb.Secret(userToken).Hash().ID()},
		{"app list -o ", "yaml"},
		{"top --sort ", "latency"},
		{"access rm ", "operator"},
		{"rollback ", "application.create by admin"},
		{"history ", "application.create by admin"},
		{"doctor --app ", "customer_service"},
	} {
		out := r.ok(append([]string{"__complete"}, strings.Split(c.args, " ")...)...)
		if !strings.Contains(out, c.want) {
			t.Errorf("%q completes to %q", c.args, out)
		}
	}
	r.env["LBCTL_SERVER"] = "http://127.0.0.1:1"
	if out := r.ok("__complete", "app", "get", ""); !strings.HasPrefix(out, ":4") {
		t.Errorf("without a server it completes to %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := r.ok("completion", shell); !strings.Contains(out, "lbctl") || len(out) < 1000 {
			t.Errorf("%s: a script of %d bytes", shell, len(out))
		}
	}
}

func TestCommands_EveryOneHasAnExample(t *testing.T) {
	b := newBench(t)
	var walk func(prefix []string)
	walk = func(prefix []string) {
		out := b.ok(append(append([]string{}, prefix...), "--help")...)
		if !strings.Contains(out, "Examples:\n") {
			t.Errorf("lbctl %s --help has no example", strings.Join(prefix, " "))
		}
		_, list, ok := strings.Cut(out, "Available Commands:\n")
		if !ok {
			return
		}
		list, _, _ = strings.Cut(list, "\n\n")
		for _, line := range strings.Split(list, "\n") {
			if name := strings.Fields(line)[0]; name != "help" {
				walk(append(append([]string{}, prefix...), name))
			}
		}
	}
	walk(nil)
}
