import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { t } from "../i18n/i18n";
import { Fault } from "./parts";

interface Question<T> {
  title: string;
  body: ComponentChildren;
  /** The word on the button that does it; without act there is nothing to do but to close. */
  yes?: string;
  danger?: boolean;
  act?: (form: HTMLFormElement) => Promise<T>;
}

interface Asked extends Question<unknown> {
  n: number;
  done: (result: unknown) => void;
}

let show: (asked: Asked | null) => void = () => undefined;
let say: (text: string) => void = () => undefined;
let questions = 0;

/**
 * ask shows a question over the page and does what is asked for. A failure is
 * shown in the dialog, which then stays. Returns what act returned, or
 * undefined when the reader thought better of it.
 */
export function ask<T>(question: Question<T>): Promise<T | undefined> {
  return new Promise((resolve) => show({ ...question, n: ++questions, done: (result) => resolve(result as T | undefined) } as Asked));
}

/** toast says for some seconds what was done. */
export function toast(text: string): void {
  say(text);
}

/** dismiss closes the question: it was about a view that is gone. */
export function dismiss(): void {
  show(null);
}

/** Dialogs is where questions and toasts appear; there is one in the page. */
export function Dialogs(): JSX.Element {
  const [asked, setAsked] = useState<Asked | null>(null);
  const [toasts, setToasts] = useState<{ n: number; text: string }[]>([]);
  const count = useRef(0);
  show = setAsked;
  say = (text) => {
    const n = ++count.current;
    setToasts((all) => [...all, { n, text }]);
    setTimeout(() => setToasts((all) => all.filter((x) => x.n !== n)), 7000);
  };
  return (
    <>
      {asked && <Dialog key={asked.n} asked={asked} gone={() => setAsked((now) => (now === asked ? null : now))} />}
      <div class="toasts" role="status" aria-live="polite">{toasts.map(({ n, text }) => <div key={n} class="toast">{text}</div>)}</div>
    </>
  );
}

function Dialog({ asked, gone }: { asked: Asked; gone: () => void }): JSX.Element {
  const { title, body, yes, danger, act, done } = asked;
  const box = useRef<HTMLDialogElement>(null);
  const result = useRef<unknown>(undefined);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Error | null>(null);

  useLayoutEffect(() => {
    const dialog = box.current;
    dialog?.showModal();
    dialog?.querySelector<HTMLElement>("[data-first], .actions button")?.focus();
    // Closing gives the focus back; being taken out of the page does not.
    return () => {
      dialog?.close();
      done(result.current);
    };
  }, [done]);

  const submit = async (e: SubmitEvent): Promise<void> => {
    e.preventDefault();
    if (!act || busy) return;
    setBusy(true);
    setFault(null);
    try {
      result.current = await act(e.target as HTMLFormElement);
      box.current?.close();
    } catch (err) {
      setFault(err as Error);
      setBusy(false);
    }
  };

  return (
    <dialog ref={box} aria-labelledby="dialog-title" onClose={gone}>
      <form onSubmit={submit}>
        <h2 id="dialog-title">{title}</h2>
        <div class="dialog-body">{body}{fault && <Fault error={fault} />}</div>
        <div class="actions">
          <button type="button" onClick={() => box.current?.close()}>{t(act ? "dialog.cancel" : "dialog.close")}</button>
          {act && <button type="submit" class={danger ? "danger" : "primary"} disabled={busy}>{yes}</button>}
        </div>
      </form>
    </dialog>
  );
}
