package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"difylb/pkg/document"
	"difylb/pkg/route"
)

// recorded is a case of what the OpenResty balancer was seen to do.
type recorded struct {
	App       string            `json:"app"`
	Algorithm string            `json:"hash_algorithm"`
	Nodes     int               `json:"virtual_nodes"`
	Instances []string          `json:"instances"`
	Users     map[string]string `json:"users"`
}

func recordings(t *testing.T) []recorded {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(sourceDir(), "../../pkg/ring/testdata/seed-ring.json"))
	if err != nil {
		t.Fatal(err)
	}
	var out []recorded
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// document declares the case's instances at 10.0.0.1, 10.0.0.2 and so on.
func (r recorded) document(instances ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "applications:\n  %s:\n    user_tokens: [usertoken--recorded-1]\n    consistent_hash: {virtual_nodes: %d, hash_algorithm: %s}\n    instances:\n", r.App, r.Nodes, r.Algorithm)
	for i, name := range instances {
		fmt.Fprintf(&b, "      - {name: %q, host: 10.0.0.%d, port: 8080, token: app-recorded-token-1}\n", name, i+1)
	}
	return b.String()
}

func (r recorded) log() string {
	var b strings.Builder
	n := 0
	for user, instance := range r.Users {
		for i, name := range r.Instances {
			if n++; name == instance && n%3 == 0 {
				instance = fmt.Sprintf("10.0.0.%d:8080", i+1)
			}
		}
		u, _ := json.Marshal(user)
		fmt.Fprintf(&b, "2024/05/06 12:00:00 [info] 7#7: *%d {\"app_type\":%q,\"user_id\":%s,\"backend_instance\":%q}, client: 10.9.9.9\n", n, r.App, u, instance)
	}
	return b.String()
}

func TestVerifyPlacement_ProvesTheRecordedLog(t *testing.T) {
	for _, r := range recordings(t) {
		b := newBench(t)
		doc := b.file("difylb.yaml", r.document(r.Instances...))
		log := b.file("app_routing.log", r.log())
		got := decodeInto[placementReport](t, b.ok("verify-placement", "--log", log, "-f", doc, "-o", "json"))
		if got.Moved != 0 || got.Same != int64(len(r.Users)) || got.Users != got.Same || !got.Exact || got.NotUnderstood != 0 {
			t.Errorf("%s %s: %+v", r.App, r.Algorithm, got)
		}
		if out := b.ok("verify-placement", "--log", log, "-f", doc); !strings.Contains(out, "every user of these applications stays where he is") {
			t.Errorf("says %s", out)
		}

		// One instance fewer: exactly its users move.
		gone := r.Instances[len(r.Instances)-1]
		want := 0
		for _, instance := range r.Users {
			if instance == gone {
				want++
			}
		}
		fewer := b.file("fewer.yaml", r.document(r.Instances[:len(r.Instances)-1]...))
		code, out, errs := b.run("verify-placement", "--log", log, "-f", fewer, "-o", "json", "--examples", "3")
		got = decodeInto[placementReport](t, out)
		if code != 1 || got.Moved != int64(want) || len(got.Applications[0].Examples) != min(3, want) {
			t.Errorf("without %s: exit code %d, %d moved, want %d: %s", gone, code, got.Moved, want, errs)
		}
		for _, m := range got.Applications[0].Examples {
			if was := r.Users[m.User]; was != gone || m.WouldBe == gone || m.WouldBe == "" {
				t.Errorf("example %+v; he was on %s", m, was)
			}
		}
	}
}

func TestVerifyPlacement_AsksTheServer(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	owner := func(user string) string {
		return decodeInto[map[string]any](t, r.ok("explain", "customer_service", user, "-o", "json"))["owner"].(string)
	}
	var log strings.Builder
	for i := range 50 {
		user := fmt.Sprintf("u%d", i)
		fmt.Fprintf(&log, `{"app_type":"customer_service","user_id":%q,"backend_instance":%q}`+"\n", user, owner(user))
	}
	r.stdin = log.String()
	if out := r.ok("verify-placement", "--log", "-"); !strings.Contains(out, "placed by the server") || !strings.Contains(out, "customer_service        50     50    50      0") {
		t.Errorf("says %s", out)
	}
	// The zipped log of an application that has another name here.
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(strings.ReplaceAll(log.String(), "customer_service", "old_name")))
	z.Close()
	file := r.file("app_routing.log.1.gz", zipped.String())
	r.ok("verify-placement", "--log", file, "--rename", "old_name=customer_service")
	r.fails(1, "names applications that are not in the configuration", "verify-placement", "--log", file)
	r.fails(2, `has no application "customer_servce"; did you mean "customer_service"`, "verify-placement", "--log", file, "--rename", "old_name=customer_servce")
}

func TestVerifyPlacement_TellsWhatItSaw(t *testing.T) {
	b := newBench(t)
	r := recordings(t)[0]
	doc := b.file("difylb.yaml", r.document(r.Instances...))
	var user, on string
	for user, on = range r.Users {
		break
	}
	other := r.Instances[0]
	if other == on {
		other = r.Instances[1]
	}
	entry := func(app, user, instance string) string {
		return fmt.Sprintf(`{"app_type":%q,"user_id":%q,"backend_instance":%q}`+"\n", app, user, instance)
	}
	log := b.file("app_routing.log", entry(r.App, user, other)+ // before; what counts is the last
		"garbage\n\n"+entry(r.App, user, "10.9.9.9:80, "+on)+entry(r.App, "", on)+entry(r.App, user, "-")+
		`{"app_type":"x"}`+"\n"+strings.Repeat("x", maxLogLine+10)+"\n"+entry(r.App, "unserved", "")+
		strings.TrimSuffix(entry(r.App, user, on), "\n"))
	out := b.ok("verify-placement", "--log", log, "-f", doc)
	for _, want := range []string{
		"10 lines, 6 requests, placed by " + doc,
		"1 request went elsewhere before",
		"1 request without a user",
		"2 requests that no instance served",
		"line 2 is not understood: there is no JSON object in it",
		"line 7 is not understood: its JSON object has no field user_id",
		"line 8 is not understood: it is longer than 1m",
		"every user of these applications stays",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("says nothing of %q:\n%s", want, out)
		}
	}
	// He comes to rest elsewhere.
	log = b.file("moved.log", entry(r.App, user, on)+entry(r.App, user, other)+entry("nobody", user, on))
	code, out, errs := b.run("verify-placement", "--log", log, "-f", doc)
	if code != 1 || !strings.Contains(errs, "1 of 1 user would move") || !strings.Contains(out, fmt.Sprintf("user %q was on %s, would be %s", user, other, on)) || !strings.Contains(out, `there is no application "nobody"`) {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	b.fails(1, "nothing is proven", "verify-placement", "--log", b.file("empty.log", "\n"), "-f", doc)
	b.fails(2, "needs --log FILE", "verify-placement", "-f", doc)
	b.fails(2, "no such file", "verify-placement", "--log", "nowhere.log", "-f", doc)
	b.fails(2, "--rename \"a\" is not OLD=NEW", "verify-placement", "--log", log, "-f", doc, "--rename", "a")
}

// The number of users is estimated when the set is full, whether one moves is not.
func TestVerifier_StaysBounded(t *testing.T) {
	r := recorded{App: "shop", Algorithm: "xxhash", Nodes: 150}
	doc, err := document.Parse([]byte(r.document("a", "b", "c")))
	if err != nil {
		t.Fatal(err)
	}
	rings, err := route.Build(snapshotOf(doc), nil)
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(rings, 2)
	a := v.apps["shop"]
	const users = 3 * maxCountedUsers / 2
	for i := range users {
		user := fmt.Sprint(i)
		p, _ := a.app.Choose(a.app.Point(user), nil, func(int) route.Condition { return route.Condition{} })
		instance := a.app.Instances[p].Decl.Name
		if i%1000 == 0 {
			instance = "gone"
		}
		v.see(a, routed{"shop", user, instance})
	}
	got := v.report("test")
	if got.Exact || len(v.users) > maxCountedUsers || got.Moved != (users+999)/1000 {
		t.Errorf("%d users kept, %+v", len(v.users), got)
	}
	if off := float64(got.Users)/users - 1; off > 0.02 || off < -0.02 {
		t.Errorf("%d users estimated of %d", got.Users, users)
	}
}
