package dify

import "strings"

const prefix = "/v1"

// declaration is a line of the table of calls: methods separated by spaces, and the path behind the prefix. A segment
// in braces is an id; {rest...} is one segment or more.
type declaration struct {
	methods string
	path    string
	call    Call
}

// Calls that take an app token. Facts: the api/controllers/service_api directory of langgenius/dify, releases 1.13 to
// 1.17.
var appCalls = []declaration{
	{"GET", "/", Call{}},

	{"POST", "/chat-messages", Call{NeedsUser: true, UserIn: JSON, ConversationIn: JSON, answer: runAnswer}},
	{"POST", "/chat-messages/{task_id}/stop", Call{NeedsUser: true, UserIn: JSON, Stop: true}},
	{"POST", "/completion-messages", Call{NeedsUser: true, UserIn: JSON, answer: runAnswer}},
	{"POST", "/completion-messages/{task_id}/stop", Call{NeedsUser: true, UserIn: JSON, Stop: true}},

	{"POST", "/workflows/run", Call{NeedsUser: true, UserIn: JSON, answer: runAnswer}},
	{"POST", "/workflows/{workflow_id}/run", Call{NeedsUser: true, UserIn: JSON, answer: runAnswer}},
	{"GET", "/workflows/run/{workflow_run_id}", Call{}},
	{"POST", "/workflows/tasks/{task_id}/stop", Call{NeedsUser: true, UserIn: JSON, Stop: true}},
	{"GET", "/workflows/logs", Call{}},
	{"GET", "/workflow/{workflow_run_id}/events", Call{NeedsUser: true, UserIn: Query}},
	{"GET", "/form/human_input/{form_token}", Call{}},
	{"POST", "/form/human_input/{form_token}", Call{NeedsUser: true, UserIn: JSON}},

	{"POST", "/files/upload", Call{UserIn: Form, answer: uploadAnswer}},
	{"GET", "/files/{file_id}/preview", Call{UserIn: Query}},

	{"GET", "/messages", Call{UserIn: Query, ConversationIn: Query}},
	{"POST", "/messages/{message_id}/feedbacks", Call{NeedsUser: true, UserIn: JSON}},
	{"GET", "/messages/{message_id}/suggested", Call{NeedsUser: true, UserIn: Query}},

	{"GET", "/conversations", Call{UserIn: Query}},
	{"DELETE", "/conversations/{conversation_id}", Call{UserIn: JSON}},
	{"POST", "/conversations/{conversation_id}/name", Call{UserIn: JSON}},
	{"GET", "/conversations/{conversation_id}/variables", Call{UserIn: Query}},
	{"PUT", "/conversations/{conversation_id}/variables/{variable_id}", Call{UserIn: JSON}},

	{"POST", "/audio-to-text", Call{UserIn: Form}},
	{"POST", "/text-to-audio", Call{UserIn: JSON}},

	{"GET", "/info", Call{}},
	{"GET", "/parameters", Call{}},
	{"GET", "/meta", Call{}},
	{"GET", "/site", Call{}},
	{"GET", "/app/feedbacks", Call{}},
	{"GET", "/end-users/{end_user_id}", Call{}},

	{"GET POST", "/apps/annotations", Call{}},
	{"PUT DELETE", "/apps/annotations/{annotation_id}", Call{}},
	{"POST", "/apps/annotation-reply/{action}", Call{}},
	{"GET", "/apps/annotation-reply/{action}/status/{job_id}", Call{}},
}

// Calls that take a dataset token. None of them has a user. The spellings with an underscore and hit-testing are the
// old ones, which Dify still serves.
var datasetCalls = []declaration{
	{"GET POST", "/datasets", Call{}},
	{"GET PATCH DELETE", "/datasets/{dataset_id}", Call{}},
	{"POST", "/datasets/{dataset_id}/retrieve", Call{}},
	{"POST", "/datasets/{dataset_id}/hit-testing", Call{}},

	{"POST", "/datasets/{dataset_id}/document/create-by-text", Call{}},
	{"POST", "/datasets/{dataset_id}/document/create-by-file", Call{}},
	{"POST", "/datasets/{dataset_id}/document/create_by_text", Call{}},
	{"POST", "/datasets/{dataset_id}/document/create_by_file", Call{}},
	{"GET", "/datasets/{dataset_id}/documents", Call{}},
	{"GET PATCH DELETE", "/datasets/{dataset_id}/documents/{document_id}", Call{}},
	{"GET", "/datasets/{dataset_id}/documents/{document_id}/download", Call{}},
	{"GET", "/datasets/{dataset_id}/documents/{batch}/indexing-status", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/{document_id}/update-by-text", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/{document_id}/update-by-file", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/{document_id}/update_by_text", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/{document_id}/update_by_file", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/download-zip", Call{}},
	{"PATCH", "/datasets/{dataset_id}/documents/status/{action}", Call{}},
	{"POST", "/datasets/{dataset_id}/documents/metadata", Call{}},

	{"GET POST", "/datasets/{dataset_id}/documents/{document_id}/segments", Call{}},
	{"GET POST DELETE", "/datasets/{dataset_id}/documents/{document_id}/segments/{segment_id}", Call{}},
	{"GET POST", "/datasets/{dataset_id}/documents/{document_id}/segments/{segment_id}/child_chunks", Call{}},
	{"PATCH DELETE", "/datasets/{dataset_id}/documents/{document_id}/segments/{segment_id}/child_chunks/{child_chunk_id}", Call{}},

	{"GET POST", "/datasets/{dataset_id}/metadata", Call{}},
	{"PATCH DELETE", "/datasets/{dataset_id}/metadata/{metadata_id}", Call{}},
	{"GET", "/datasets/{dataset_id}/metadata/built-in", Call{}},
	{"POST", "/datasets/{dataset_id}/metadata/built-in/{action}", Call{}},

	{"GET POST PATCH DELETE", "/datasets/tags", Call{}},
	{"POST", "/datasets/tags/binding", Call{}},
	{"POST", "/datasets/tags/unbinding", Call{}},
	{"GET", "/datasets/{dataset_id}/tags", Call{}},

	{"POST", "/datasets/pipeline/file-upload", Call{answer: uploadAnswer}},
	{"GET", "/datasets/{dataset_id}/pipeline/datasource-plugins", Call{}},
	{"POST", "/datasets/{dataset_id}/pipeline/datasource/nodes/{node_id}/run", Call{}},
	{"POST", "/datasets/{dataset_id}/pipeline/run", Call{}},

	{"GET", "/workspaces/current/models/model-types/{model_type}", Call{}},
	{"GET POST PUT PATCH DELETE", "/knowledge-fs/{rest...}", Call{}},
}

// router is the root of the tree of paths, behind the prefix.
var router = buildRouter()

func buildRouter() *node {
	root := &node{}
	for _, d := range appCalls {
		root.add(d)
	}
	for _, d := range datasetCalls {
		d.call.Dataset = true
		root.add(d)
	}
	return root
}

// add declares the calls of d below the root n.
func (n *node) add(d declaration) {
	r := &route{call: d.call, taskID: -1, conversation: -1}
	r.call.Known = true
	r.call.Pattern = prefix + d.path
	ids := 0
	for segment := range strings.SplitSeq(strings.Trim(d.path, "/"), "/") {
		switch {
		case segment == "":
			continue
		case segment == "{rest...}":
			n = n.ensureID()
			n.id = n
		case segment[0] == '{':
			switch segment {
			case "{task_id}":
				r.taskID = ids
			case "{conversation_id}":
				r.conversation = ids
			}
			ids++
			n = n.ensureID()
		default:
			n = n.ensureWord(segment)
		}
	}
	for method := range strings.FieldsSeq(d.methods) {
		m, ok := methodOf(method)
		if !ok || n.routes[m] != nil {
			panic("dify: " + method + " " + d.path + " is declared twice or has no such method")
		}
		n.routes[m] = r
	}
}

func (n *node) ensureID() *node {
	if n.id == nil {
		n.id = &node{}
	}
	return n.id
}

func (n *node) ensureWord(text string) *node {
	if next := n.word(text); next != nil {
		return next
	}
	next := &node{}
	n.words = append(n.words, word{text, next})
	return next
}
