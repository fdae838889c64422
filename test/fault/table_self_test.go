package fault

import (
	"path/filepath"
	"strings"
	"testing"

	"difylb/test/testbed"
)

// A run that lacks a section, whatever the reason, must not take it from the page.
func TestUpdatePage_LosesNoSection(t *testing.T) {
	page := filepath.Join(testbed.Repository(), "docs", "reliability.md")
	before := testbed.ReadFile(t, page)
	var list []row
	for i := range sections {
		if sections[i].test != "TestFault_Network" {
			list = append(list, row{section: i})
		}
	}
	if err := updatePage(list); err == nil || !strings.Contains(err.Error(), "TestFault_Network did not run") {
		t.Errorf("updatePage without the rows of TestFault_Network: %v", err)
	}
	if string(testbed.ReadFile(t, page)) != string(before) {
		t.Error("the page was changed all the same")
	}
}
