import type { JSX } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Refusal } from "../api/client";
import { useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { Fault, describe } from "../parts/parts";

export function SignIn(): JSX.Element {
  const session = useSession();
  const input = useRef<HTMLInputElement>(null);
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState<Error | null>(null);
  useLayoutEffect(() => input.current?.focus(), []);

  const submit = async (e: SubmitEvent): Promise<void> => {
    e.preventDefault();
    const token = input.current?.value.trim();
    if (!token) return input.current?.focus();
    setBusy(true);
    try {
      await session.begin(token);
    } catch (err) {
      setFault(err as Error);
      setBusy(false);
      input.current?.select();
    }
  };

  const { ended } = session;
  const shown = fault ?? (ended instanceof Error ? ended : null);
  const instead = fault instanceof Refusal && fault.status === 401 ? t("signin.wrong") : shown && !fault ? t("banner.lost", { error: describe(shown) }) : undefined;
  return (
    <form class="card" onSubmit={submit}>
      <h1>{t("signin.title")}</h1>
      <p class="dim">{t("signin.about")}</p>
      <label for="token">{t("signin.token")}</label>
      <input ref={input} id="token" name="token" type="password" autocomplete="off" autocapitalize="none" spellcheck={false} required />
      {shown ? <Fault error={shown} instead={instead} /> : ended === "ended" && <div class="fault" role="alert"><b>{t("signin.ended")}</b></div>}
      <button class="primary" type="submit" disabled={busy}>{t("signin.go")}</button>
      <p class="dim small">{t("signin.where")}</p>
    </form>
  );
}
