package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"reflect"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// costs are the parts of /status that say what answers have cost.
type costs struct {
	Applications map[string]struct {
		Usage       usage
		TokenLabels map[string]struct {
			Requests uint64
			Usage    usage
		} `json:"token_labels"`
		Instances map[string]struct{ Usage usage }
	}
}

type usage struct {
	Answers uint64
	Prompt  uint64 `json:"prompt_tokens"`
	Output  uint64 `json:"completion_tokens"`
	Total   uint64 `json:"total_tokens"`
	Cost    map[string]string
}

// message sends a chat message and returns the conversation and the tokens
// that the answer says it has cost.
func (c *cluster) message(base, token, user, conversation, mode string) (id, speaks string, tokens uint64) {
	c.t.Helper()
	body := fmt.Sprintf(`{"inputs":{"_standin":{"tokens":4,"gap_ms":1,"first_ms":1}},"query":"hello","response_mode":%q,"user":%q,"conversation_id":%q}`, mode, user, conversation)
	status, answer := c.request("POST", base+"/v1/chat-messages", token, "application/json", body)
	if status != http.StatusOK {
		c.t.Fatalf("message of %s in %q through %s: status %d: %s", user, conversation, base, status, answer)
	}
	text := string(answer)
	if m := speaker.FindStringSubmatch(text); m != nil {
		speaks = m[1]
	}
	for line := range strings.Lines(text) {
		var event struct {
			ConversationID string `json:"conversation_id"`
			Metadata       struct{ Usage usage }
		}
		if json.Unmarshal([]byte(strings.TrimPrefix(strings.TrimSpace(line), "data: ")), &event) != nil {
			continue
		}
		if event.ConversationID != "" {
			id = event.ConversationID
		}
		tokens += event.Metadata.Usage.Total
	}
	if id == "" || tokens == 0 {
		c.t.Fatalf("the answer names no conversation or no usage: %s", text)
	}
	return id, speaks, tokens
}

// request is one call of a client, with a token unless that is empty.
func (c *cluster) request(method, url, token, contentType, body string) (status int, answer []byte) {
	c.t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := clients.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		c.t.Fatal(err)
	}
	c.keep(method+" "+req.URL.Path, answer)
	return resp.StatusCode, answer
}

// A user whose instance drains goes on with his conversation there, also
// through a proxy that has never seen it; and what all of it cost is the same
// wherever one asks.
func TestDify_ConversationOutlivesTheDrainAndIsPaidFor(t *testing.T) {
	t.Parallel()
	var app application
	var nodes []*standinNode
	c := newPair(t, func(c *cluster) []application {
		app, nodes = c.chatApplication("talk", 3, probed())
		app.fields["user_tokens"] = []any{map[string]any{"token": app.token, "label": "web"}}
		return []application{app}
	})
	one, two := c.proxies[0].url, c.proxies[1].url
	owner := app.instances[0].name
	user := app.ownedBy(t, owner, users("talker", 40))[0]

	var spent, answers uint64
	say := func(base, conversation, mode string) (string, string) {
		t.Helper()
		id, speaks, tokens := c.message(base, app.token, user, conversation, mode)
		spent += tokens
		answers++
		return id, speaks
	}
	id, speaks := say(one, "", "blocking")
	if speaks != owner {
		t.Fatalf("%s speaks, %s owns the user", speaks, owner)
	}
	c.mustCall("POST", "/apps/"+app.name+"/instances/"+owner+"/drain?wait=10s", nil) // returns when it is in force on both proxies
	for i, mode := range []string{"streaming", "blocking", "streaming", "blocking"} {
		if got, speaks := say([]string{two, one}[i%2], id, mode); got != id || speaks != owner {
			t.Errorf("%s message %d: conversation %s of %s, want %s of %s", mode, i, got, speaks, id, owner)
		}
	}
	if status, body := c.request("GET", two+"/v1/messages?user="+user+"&conversation_id="+id, app.token, "", ""); status != http.StatusOK || bytes.Count(body, []byte(`"query"`)) != 5 {
		t.Errorf("the history: status %d: %s", status, body)
	}
	fresh, next := say(two, "", "blocking")
	if next == owner || fresh == id {
		t.Errorf("a new conversation begins on %s, which drains", next)
	}
	if got, speaks := say(one, fresh, "streaming"); got != fresh || speaks != next {
		t.Errorf("the new one goes on as %s of %s, want %s of %s", got, speaks, fresh, next)
	}
	for _, s := range nodes {
		if s.Name != owner && s.Name != next && generated(s.counts()) > 0 {
			t.Errorf("%s was asked for nothing", s.Name)
		}
	}
	if status, body := c.request("GET", one+"/v1/messages?user="+user+"&conversation_id=11111111-2222-4333-8444-555555555555", app.token, "", ""); status != http.StatusNotFound || !bytes.Contains(body, []byte(`"not_found"`)) {
		t.Errorf("unknown everywhere: status %d: %s", status, body)
	}

	testbed.Eventually(t, 3*time.Second, "both proxies tell the same costs", func() error {
		var told [2]costs
		for i, base := range []string{one, two} {
			code, body, err := testbed.Get(base + "/status")
			if err != nil || code != http.StatusOK {
				return fmt.Errorf("status %d, %v", code, err)
			}
			if err := json.Unmarshal(body, &told[i]); err != nil {
				return err
			}
		}
		got, web := told[0].Applications[app.name], told[0].Applications[app.name].TokenLabels["web"]
		switch {
		case !reflect.DeepEqual(told[0], told[1]):
			return fmt.Errorf("they tell %+v and %+v", told[0], told[1])
		case got.Usage.Total != spent || got.Usage.Answers != answers || got.Usage.Prompt+got.Usage.Output != spent || got.Usage.Cost["USD"] == "":
			return fmt.Errorf("the application has %+v, the answers said %d tokens in %d", got.Usage, spent, answers)
		case !reflect.DeepEqual(web.Usage, got.Usage) || web.Requests != answers+2:
			return fmt.Errorf("the label has %+v, the application %+v", web, got.Usage)
		case got.Instances[owner].Usage.Answers != 5 || got.Instances[next].Usage.Answers != answers-5:
			return fmt.Errorf("by instance: %+v", got.Instances)
		}
		return nil
	})
}

// A link that an instance signed is served through any proxy that was told to,
// without a token, and by no other.
func TestDify_SignedLinks(t *testing.T) {
	t.Parallel()
	var app application
	c := newCluster(t)
	c.startAdmin()
	app, _ = c.chatApplication("files", 3, probed())
	c.apply(document(t, app))
	off := c.startProxy()
	on := c.startProxy("--files-route")
	other := c.startProxy("--files-route")
	c.awaitNodes(3)
	for _, in := range app.instances {
		user := app.ownedBy(t, in.name, users("sender", 60))[0]
		var form bytes.Buffer
		w := multipart.NewWriter(&form)
		w.WriteField("user", user)
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="a.txt"`}, "Content-Type": {"text/plain"}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(part, "kept by %s", in.name)
		w.Close()
		status, answer := c.request("POST", on.url+"/v1/files/upload", app.token, w.FormDataContentType(), form.String())
		var uploaded struct {
			SourceURL string `json:"source_url"`
		}
		if err := json.Unmarshal(answer, &uploaded); err != nil || status != http.StatusCreated {
			t.Fatalf("upload: status %d: %s", status, answer)
		}
		for _, p := range []*proxyNode{on, other, on, other} {
			if status, body := c.request("GET", p.url+uploaded.SourceURL, "", "", ""); status != http.StatusOK || string(body) != "kept by "+in.name {
				t.Errorf("%s: status %d: %s", p.Name, status, body)
			}
		}
		if status, body := c.request("GET", on.url+uploaded.SourceURL+"x", "", "", ""); status != http.StatusNotFound {
			t.Errorf("a forged link: status %d: %s", status, body)
		}
		if status, _ := c.request("GET", off.url+uploaded.SourceURL, "", "", ""); status != http.StatusNotFound {
			t.Errorf("without --files-route: status %d", status)
		}
	}
}
