import { render } from "preact";
import { App } from "./app";
import { SessionProvider } from "./hooks";
import { choose } from "./i18n/i18n";
import { recallTheme } from "./look";
import { Boundary } from "./parts/boundary";
import { Session } from "./session";
import { recall } from "./storage";
import "./style/base.css";
import "./style/shell.css";
import "./style/parts.css";

choose(recall("difylb.language"));
recallTheme();
const session = new Session();
const root = document.getElementById("app");
if (root) {
  root.replaceChildren();
  render(<SessionProvider value={session}><Boundary><App /></Boundary></SessionProvider>, root);
  void session.resume();
}
