package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

func TestDoctor_SaysWhatIsWrong(t *testing.T) {
	r := newRig(t)
	addCustomerService(r)
	revision := r.store.Current().ConfigRevision
	near := played("p1", revision)
	near.RingChecksum = "aa"
	far := played("p2", revision)
	far.RingChecksum, far.Version = "bb", "2"
	gone := played("p3", revision)
	gone.Connected = false
	r.hub.set(0, near, far, gone)
	r.hub.checks = []cluster.NodeCheck{
		{Node: "p1", Answered: true, SkewMS: 90_000, RoundTripMS: 3, Instances: []cluster.Reach{
			{App: "customer_service", Instance: "dify1", Address: "172.20.62.200:80"},
			{App: "customer_service", Instance: "dify2", Address: "172.20.62.201:80", Error: "connection refused"},
		}},
		{Node: "p2", Answered: true, SkewMS: -5_000, Instances: []cluster.Reach{
			{App: "customer_service", Instance: "dify1", Address: "172.20.62.200:80", Error: "i/o timeout"},
			{App: "customer_service", Instance: "dify2", Address: "172.20.62.201:80", Error: "connection refused"},
		}},
		{Node: "p3", Instances: []cluster.Reach{}},
	}
	code, out, errs := r.run("doctor", "-o", "json")
	d := decodeInto[diagnosis](t, out)
	if code != 1 || d.Level != levelFail || !strings.Contains(errs, "points fail") {
		t.Errorf("exit code %d, level %s: %s", code, d.Level, errs)
	}
	found := make(map[string]finding)
	for _, f := range d.Findings {
		found[f.Check] = f
		if (f.Level == levelOK) != (f.Advice == "") {
			t.Errorf("%s is %s with the advice %q", f.Check, f.Level, f.Advice)
		}
	}
	for check, want := range map[string][2]string{
		"lb-admin":                         {levelOK, "is ready"},
		"etcd":                             {levelOK, "answers in"},
		"etcd alarm":                       {levelOK, "none"},
		"clock of lb-admin":                {levelOK, "agrees with this machine's"},
		"clock of p1":                      {levelFail, "ahead of lb-admin's"},
		"clock of p2":                      {levelWarn, "5s behind lb-admin's"},
		"checks of p3":                     {levelWarn, "did not say"},
		"proxy p1":                         {levelOK, "in force"},
		"proxy p3":                         {levelFail, "has not reported"},
		"placement":                        {levelFail, "aa: p1; bb: p2"},
		"versions":                         {levelWarn, "1: p1, p3; 2: p2"},
		"reach customer_service/dify1":     {levelFail, "is reached from p1, not from p2: i/o timeout"},
		"reach customer_service/dify2":     {levelFail, "no proxy can connect: connection refused"},
		"health of customer_service/dify1": {levelWarn, "not known"},
	} {
		if f := found[check]; f.Level != want[0] || !strings.Contains(f.Found, want[1]) {
			t.Errorf("%s: %+v, want %v", check, f, want)
		}
	}
	_, table, _ := r.run("doctor")
	if !strings.HasPrefix(table, "fail  ") || !strings.Contains(table, "→ look at the firewall") {
		t.Errorf("the worst does not come first:\n%s", table)
	}
	// The check has the proxies dial: viewers may not.
	r.env["LBCTL_TOKEN"] = r.tokens[admin.RoleViewer].Reveal()
	r.fails(1, "this needs the role operator", "doctor")
	r.env["LBCTL_TOKEN"] = r.tokens[admin.RoleOperator].Reveal()
	r.fails(1, `there is no application "customer_servce"; did you mean "customer_service"`, "doctor", "--app", "customer_servce")
	r.fails(2, "--canary needs --canary-token", "doctor", "--canary", "http://x")
	r.fails(2, "it is a URL such as", "doctor", "--canary", "x", "--canary-token", "user-token-000001")
	r.fails(2, "belong to it", "doctor", "--canary-token", "user-token-000001")
	r.fails(2, "not JSON", "doctor", "--canary", "http://x", "--canary-token", "user-token-000001", "--canary-body", "{")
}

func TestDiagnoseInstances_SaysWhichTokenIsRejected(t *testing.T) {
	d := &diagnosis{}
	at := time.Unix(1_700_000_000, 0)
	diagnoseInstances(d, &admin.Status{Applications: map[string]*cluster.ApplicationStatus{
		"shop": {Instances: map[string]*cluster.InstanceStatus{
			"a": {State: lb.Active, Status: cluster.StatusTokenRejected},
			"b": {State: lb.Active, Status: cluster.StatusEjected, LastError: &cluster.LastError{Reason: "connect", Time: at}},
		}},
		"desk": {Instances: map[string]*cluster.InstanceStatus{"c": {State: lb.Active, Status: cluster.StatusHealthy}}},
		"idle": {Instances: map[string]*cluster.InstanceStatus{"d": {State: lb.Disabled, Status: cluster.StatusDisabled}}},
	}}, "")
	text, _ := json.Marshal(d.Findings)
	for _, want := range []string{`"token of shop/a","level":"fail"`, `"health of shop/b","level":"warn"`, "the last error was connect at 2023-11-14", `"application shop","level":"fail"`, `"application idle","level":"warn"`, "1 instance is healthy"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("says nothing of %s: %s", want, text)
		}
	}
}

func TestDiagnoseStore_KnowsAlarms(t *testing.T) {
	d := &diagnosis{}
	diagnoseStore(d, &admin.Check{Store: admin.StoreCheck{OK: true, MS: 300, Alarms: []string{"NOSPACE on etcd member 1"}, StaleSeconds: 9}})
	diagnoseStore(d, &admin.Check{Store: admin.StoreCheck{Error: "deadline"}})
	var levels []string
	for _, f := range d.Findings {
		levels = append(levels, f.Check+" "+f.Level)
	}
	if got := strings.Join(levels, ", "); got != "etcd warn, etcd alarm fail, etcd watch warn, etcd fail" {
		t.Errorf("finds %s", got)
	}
}

func TestSong_IsJudgedByItsRhythm(t *testing.T) {
	every := func(n int, gap time.Duration, heap int) *song {
		s := &song{}
		for i := range n {
			s.events = append(s.events, time.Second+time.Duration(i/heap)*gap*time.Duration(heap))
		}
		s.end = s.events[n-1]
		return s
	}
	for _, c := range []struct {
		name, want string
		song       *song
	}{
		{"word by word", levelOK, every(50, 60*time.Millisecond, 1)},
		{"word by word, short", levelOK, &song{events: []time.Duration{20e6, 60e6, 100e6, 140e6, 180e6}, end: 180e6}},
		{"all at the end", levelFail, every(50, 0, 1)},
		{"by the page", levelFail, every(60, 60*time.Millisecond, 12)},
		{"two at a time", levelOK, every(60, 60*time.Millisecond, 2)},
		{"nearly nothing", levelWarn, every(3, time.Second, 1)},
		{"short and at once", levelWarn, &song{events: []time.Duration{3e6, 3e6, 3e6, 3e6, 4e6}, end: 4e6}},
	} {
		if level, found := c.song.verdict(); level != c.want {
			t.Errorf("%s: %s, %s; want %s", c.name, level, found, c.want)
		}
	}
}
