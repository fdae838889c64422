package arch

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestCompose_StartsWhatThereIs reads the compose file and checks that every
// flag that it gives one of our binaries exists, and that the cluster is the
// one that is promised.
func TestCompose_StartsWhatThereIs(t *testing.T) {
	data, err := os.ReadFile("../../deploy/compose/docker-compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Command []string `yaml:"command"`
			Ports   []string `yaml:"ports"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	help := make(map[string]string)
	count := make(map[string]int)
	ports := ""
	for name, s := range file.Services {
		ports += strings.Join(s.Ports, " ") + " "
		if len(s.Command) == 0 {
			t.Fatalf("%s has no command", name)
		}
		binary := strings.TrimPrefix(s.Command[0], "/")
		count[binary]++
		if binary == "etcd" {
			continue
		}
		if help[binary] == "" {
			out, err := exec.Command("go", "run", "difylb/cmd/"+binary, "--help").CombinedOutput()
			if err != nil {
				t.Fatalf("%s --help: %v\n%s", binary, err, out)
			}
			help[binary] = string(out)
		}
		for _, arg := range s.Command[1:] {
			flag, _, _ := strings.Cut(arg, "=")
			if !strings.Contains(help[binary], flag+" ") {
				t.Errorf("%s: %s has no flag %s", name, binary, flag)
			}
		}
	}
	if count["etcd"] != 3 || count["lb-admin"] != 2 || count["lb-proxy"] != 2 {
		t.Errorf("services: %v", count)
	}
	if !strings.Contains(" "+ports, " 82:") {
		t.Errorf("port 82 is not published: %s", ports)
	}
}
