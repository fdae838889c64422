package dify

import (
	"regexp"
	"strings"
	"testing"
)

const uuid = "d6d3f9f1-7a5d-4f2c-9f7e-0f7f2f4c1111"

// documented is every call of Dify's API reference, one line each: methods, path, and what there is to know of it. It
// stands apart from the table it checks on purpose. user=P is optional, user=P! required; conv=P where a conversation
// id stands.
const documented = `
GET / -
POST /chat-messages user=json! conv=json
POST /chat-messages/{task_id}/stop user=json! stop
POST /completion-messages user=json!
POST /completion-messages/{task_id}/stop user=json! stop
POST /workflows/run user=json!
POST /workflows/{workflow_id}/run user=json!
GET /workflows/run/{workflow_run_id} -
POST /workflows/tasks/{task_id}/stop user=json! stop
GET /workflows/logs -
GET /workflow/{workflow_run_id}/events user=query!
GET /form/human_input/{form_token} -
POST /form/human_input/{form_token} user=json!
POST /files/upload user=form
GET /files/{file_id}/preview user=query
GET /messages user=query conv=query
POST /messages/{message_id}/feedbacks user=json!
GET /messages/{message_id}/suggested user=query!
GET /conversations user=query
DELETE /conversations/{conversation_id} user=json
POST /conversations/{conversation_id}/name user=json
GET /conversations/{conversation_id}/variables user=query
PUT /conversations/{conversation_id}/variables/{variable_id} user=json
POST /audio-to-text user=form
POST /text-to-audio user=json
GET /info -
GET /parameters -
GET /meta -
GET /site -
GET /app/feedbacks -
GET /end-users/{end_user_id} -
GET,POST /apps/annotations -
PUT,DELETE /apps/annotations/{annotation_id} -
POST /apps/annotation-reply/{action} -
GET /apps/annotation-reply/{action}/status/{job_id} -

POST,GET /datasets dataset
GET,PATCH,DELETE /datasets/{dataset_id} dataset
POST /datasets/{dataset_id}/retrieve dataset
POST /datasets/{dataset_id}/hit-testing dataset
POST /datasets/{dataset_id}/document/create-by-text dataset
POST /datasets/{dataset_id}/document/create-by-file dataset
POST /datasets/{dataset_id}/document/create_by_text dataset
POST /datasets/{dataset_id}/document/create_by_file dataset
GET /datasets/{dataset_id}/documents dataset
GET,PATCH,DELETE /datasets/{dataset_id}/documents/{document_id} dataset
GET /datasets/{dataset_id}/documents/{document_id}/download dataset
GET /datasets/{dataset_id}/documents/{batch}/indexing-status dataset
POST /datasets/{dataset_id}/documents/{document_id}/update-by-text dataset
POST /datasets/{dataset_id}/documents/{document_id}/update-by-file dataset
POST /datasets/{dataset_id}/documents/{document_id}/update_by_text dataset
POST /datasets/{dataset_id}/documents/{document_id}/update_by_file dataset
POST /datasets/{dataset_id}/documents/download-zip dataset
PATCH /datasets/{dataset_id}/documents/status/{action} dataset
POST /datasets/{dataset_id}/documents/metadata dataset
POST,GET /datasets/{dataset_id}/documents/{document_id}/segments dataset
GET,POST,DELETE /datasets/{dataset_id}/documents/{document_id}/segments/{segment_id} dataset
POST,GET /datasets/{dataset_id}/documents/{document_id}/segments/{segment_id}/child_chunks dataset
PATCH,DELETE /datasets/{dataset_id}/documents/{document_id}/segments/{segment_id}/child_chunks/{child_chunk_id} dataset
POST,GET /datasets/{dataset_id}/metadata dataset
PATCH,DELETE /datasets/{dataset_id}/metadata/{metadata_id} dataset
GET /datasets/{dataset_id}/metadata/built-in dataset
POST /datasets/{dataset_id}/metadata/built-in/{action} dataset
POST,GET,PATCH,DELETE /datasets/tags dataset
POST /datasets/tags/binding dataset
POST /datasets/tags/unbinding dataset
GET /datasets/{dataset_id}/tags dataset
POST /datasets/pipeline/file-upload dataset
GET /datasets/{dataset_id}/pipeline/datasource-plugins dataset
POST /datasets/{dataset_id}/pipeline/datasource/nodes/{node_id}/run dataset
POST /datasets/{dataset_id}/pipeline/run dataset
GET /workspaces/current/models/model-types/{model_type} dataset
GET,POST,PUT,PATCH,DELETE /knowledge-fs/{rest...} dataset
`

var idInPattern = regexp.MustCompile(`\{[^}]*\}`)

func TestClassify_KnowsEveryDocumentedCall(t *testing.T) {
	places := map[string]Place{"query": Query, "json": JSON, "form": Form}
	type key struct{ method, pattern string }
	listed := map[key]bool{}
	for row := range strings.Lines(documented) {
		fields := strings.Fields(row)
		if len(fields) == 0 {
			continue
		}
		path := "/v1" + idInPattern.ReplaceAllString(fields[1], uuid)
		want := Call{Known: true, Pattern: "/v1" + fields[1]}
		for _, f := range fields[2:] {
			name, value, _ := strings.Cut(f, "=")
			switch name {
			case "user":
				want.NeedsUser = strings.HasSuffix(value, "!")
				want.UserIn = places[strings.TrimSuffix(value, "!")]
			case "conv":
				want.ConversationIn = places[value]
			case "stop":
				want.Stop, want.TaskID = true, uuid
			case "dataset":
				want.Dataset = true
			}
		}
		if strings.Contains(fields[1], "{conversation_id}") {
			want.Conversation = uuid
		}
		allowed := map[string]bool{}
		for _, method := range strings.Split(fields[0], ",") {
			listed[key{method, want.Pattern}] = true
			allowed[method] = true
			got := Classify(method, path)
			got.answer = plainAnswer
			if got != want {
				t.Errorf("%s %s:\n got %+v\nwant %+v", method, path, got, want)
			}
		}
		if allowed["GET"] && Classify("HEAD", path) != Classify("GET", path) {
			t.Errorf("HEAD %s differs from GET", path)
		}
		for _, method := range []string{"OPTIONS", "CONNECT", "get", ""} {
			if got := Classify(method, path); got != (Call{}) {
				t.Errorf("%s %s is known: %+v", method, path, got)
			}
		}
	}
	// What the router knows beyond the list would be a slip of one of the two.
	for _, d := range append(append([]declaration{}, appCalls...), datasetCalls...) {
		for _, method := range strings.Fields(d.methods) {
			if !listed[key{method, "/v1" + d.path}] {
				t.Errorf("%s %s is declared but not documented", method, d.path)
			}
		}
	}
}

func TestClassify_OddPaths(t *testing.T) {
	for _, c := range []struct{ method, path, pattern, id string }{
		{"GET", "/v1", "/v1/", ""},
		{"GET", "/v1/", "/v1/", ""},
		{"POST", "/v1/", "", ""},
		{"GET", "", "", ""},
		{"GET", "/", "", ""},
		{"GET", "v1/info", "", ""},
		{"GET", "/v1x", "", ""},
		{"GET", "/v1info", "", ""},
		{"GET", "/v2/info", "", ""},
		{"GET", "/V1/info", "", ""},
		{"GET", "/v1/Info", "", ""},
		{"GET", "/v1/info/", "", ""},
		{"GET", "/v1//info", "", ""},
		{"GET", "/v1//", "", ""},
		{"GET", "//v1/info", "", ""},
		{"GET", "/v1/%69nfo", "", ""},
		{"GET", "/v1/info%2F", "", ""},
		{"GET", "/v1/./info", "", ""},
		{"GET", "/v1/chat-message", "", ""},
		{"POST", "/v1/chat-message/x/stop", "", ""},
		{"PATCH", "/v1/conversations/" + uuid, "", ""},
		{"GET", "/v1/chat-messages", "", ""},
		{"POST", "/v1/chat-messages//stop", "", ""},
		{"POST", "/v1/chat-messages/../stop", "", ""},
		{"POST", "/v1/chat-messages/./stop", "", ""},
		{"POST", "/v1/chat-messages/a/b/stop", "", ""},
		{"POST", "/v1/chat-messages/a%2Fb/stop", "", ""},
		{"POST", "/v1/chat-messages/a%2fb/stop", "", ""},
		{"POST", "/v1/chat-messages/a/stop/", "", ""},
		{"POST", "/v1/chat-messages/a/stop/b", "", ""},
		{"POST", "/v1/chat-messages/a%20b/stop", "/v1/chat-messages/{task_id}/stop", "a%20b"},
		{"POST", "/v1/chat-messages/%/stop", "/v1/chat-messages/{task_id}/stop", "%"},
		{"POST", "/v1/chat-messages/%2/stop", "/v1/chat-messages/{task_id}/stop", "%2"},
		{"POST", "/v1/chat-messages/%%2F/stop", "", ""},
		{"POST", "/v1/chat-messages/.../stop", "/v1/chat-messages/{task_id}/stop", "..."},
		{"POST", "/v1/workflows/tasks/a/stop", "/v1/workflows/tasks/{task_id}/stop", "a"},
		// A fixed word is never an id.
		{"POST", "/v1/workflows/run/run", "", ""},
		{"POST", "/v1/workflows/tasks/run", "", ""},
		{"POST", "/v1/workflows/logs/run", "", ""},
		{"GET", "/v1/datasets/tags", "/v1/datasets/tags", ""},
		{"GET", "/v1/datasets/" + uuid + "/documents/metadata", "", ""},
		{"GET", "/v1/knowledge-fs", "", ""},
		{"GET", "/v1/knowledge-fs/", "", ""},
		{"GET", "/v1/knowledge-fs/a", "/v1/knowledge-fs/{rest...}", ""},
		{"GET", "/v1/knowledge-fs/a/b/c/d/e/f/g/h", "/v1/knowledge-fs/{rest...}", ""},
		{"GET", "/v1/knowledge-fs/a//b", "", ""},
		{"GET", "/v1/knowledge-fs/a/../b", "", ""},
	} {
		got := Classify(c.method, c.path)
		if got.Pattern != c.pattern || got.Known != (c.pattern != "") || got.TaskID != c.id {
			t.Errorf("%s %q: got %+v", c.method, c.path, got)
		}
		if !got.Known && got != (Call{}) {
			t.Errorf("%s %q is not known, yet %+v", c.method, c.path, got)
		}
	}
}

func TestClassify_DoesNotAllocate(t *testing.T) {
	for _, c := range benchmarkCalls {
		if n := testing.AllocsPerRun(100, func() { Classify(c.method, c.path) }); n != 0 {
			t.Errorf("%s: %v allocations", c.name, n)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for row := range strings.Lines(documented) {
		if fields := strings.Fields(row); len(fields) > 1 {
			f.Add(strings.Split(fields[0], ",")[0], "/v1"+idInPattern.ReplaceAllString(fields[1], "a"))
		}
	}
	f.Add("GET", "/v1//%2F/../")
	f.Fuzz(func(t *testing.T, method, path string) {
		got := Classify(method, path)
		if !got.Known {
			if got != (Call{}) {
				t.Fatalf("not known, yet %+v", got)
			}
			return
		}
		// A pattern is a regular expression waiting to be written.
		expr := regexp.QuoteMeta(got.Pattern)
		expr = strings.ReplaceAll(expr, `\{rest\.\.\.\}`, `(?s:.+)`)
		expr = regexp.MustCompile(`\\\{[a-z_]+\\\}`).ReplaceAllString(expr, `[^/]+`)
		if got.Pattern != "/v1/" && !regexp.MustCompile("^"+expr+"$").MatchString(path) {
			t.Fatalf("%q is no %s", path, got.Pattern)
		}
		if got.Stop != (got.TaskID != "") || got.NeedsUser && got.UserIn == Nowhere || got.Dataset && got.UserIn != Nowhere {
			t.Fatalf("contradiction: %+v", got)
		}
		if !strings.Contains(path, got.TaskID) || !strings.Contains(path, got.Conversation) {
			t.Fatalf("an id that is not in the path: %+v", got)
		}
	})
}

var benchmarkCalls = []struct{ name, method, path string }{
	{"Short", "POST", "/v1/chat-messages"},
	{"Stop", "POST", "/v1/chat-messages/" + uuid + "/stop"},
	{"Variable", "PUT", "/v1/conversations/" + uuid + "/variables/" + uuid},
	{"Longest", "PATCH", "/v1/datasets/" + uuid + "/documents/" + uuid + "/segments/" + uuid + "/child_chunks/" + uuid},
	{"Unknown", "GET", "/v1/no/such/call"},
}

var sinkCall Call

func BenchmarkClassify(b *testing.B) {
	for _, c := range benchmarkCalls {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				sinkCall = Classify(c.method, c.path)
			}
		})
	}
}
