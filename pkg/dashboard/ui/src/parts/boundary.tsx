import { Component, type ComponentChildren } from "preact";
import { t } from "../i18n/i18n";
import { Fault } from "./parts";

interface Props {
  children: ComponentChildren;
}

/** Boundary shows what went wrong while its children were drawn in their place, and draws them again when asked. */
export class Boundary extends Component<Props, { error: Error | null }> {
  override state = { error: null as Error | null };

  static override getDerivedStateFromError(error: unknown): { error: Error } {
    return { error: error instanceof Error ? error : new Error(String(error)) };
  }

  override componentDidCatch(error: unknown): void {
    console.error(error);
  }

  override render(): ComponentChildren {
    const { error } = this.state;
    if (!error) return this.props.children;
    return (
      <div class="broken">
        <h1>{t("error.title")}</h1>
        <Fault error={error} retry={() => this.setState({ error: null })} />
      </div>
    );
  }
}
